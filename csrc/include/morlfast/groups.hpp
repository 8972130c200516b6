// Which rows belong together: contiguous groups, or groups by id.
#pragma once
#include <cstdint>
#include <vector>

namespace morlfast {

/// Groups of `rows` rows. Rows of a group are visited in ascending order.
class Groups {
 public:
  /// Rows 0..size-1, size..2 size-1, ...; `rows` must be a multiple of `size`.
  static Groups contiguous(int64_t rows, int64_t size);
  /// Rows offsets[g]..offsets[g+1]-1 for each of `count` groups; offsets ascend from 0.
  static Groups by_offsets(const int64_t* offsets, int64_t count);
  /// Rows with equal ids (any values, any order), groups in order of first appearance; O(rows) expected.
  static Groups by_id(const int64_t* ids, int64_t stride, int64_t rows);
  static Groups by_id(const int32_t* ids, int64_t stride, int64_t rows);

  int64_t count() const { return size_ > 0 ? rows_ / size_ : static_cast<int64_t>(offsets_.size()) - 1; }
  int64_t rows() const { return rows_; }
  int64_t begin(int64_t group) const { return size_ > 0 ? group * size_ : offsets_[group]; }
  int64_t end(int64_t group) const { return begin(group + 1); }
  bool contiguous() const { return order_.empty(); }
  /// Row at a place between begin(group) and end(group).
  int64_t row(int64_t place) const { return contiguous() ? place : order_[place]; }

 private:
  template <class Id>
  static Groups from_ids(const Id* ids, int64_t stride, int64_t rows);

  int64_t rows_ = 0;
  int64_t size_ = 0;
  std::vector<int64_t> offsets_;
  std::vector<int64_t> order_;
};

/// first[i] = the lowest row with the same bytes as row i, for rows of `bytes` contiguous bytes each; O(rows bytes)
/// expected.
void group_rows(const void* data, int64_t row_stride_bytes, int64_t bytes, int64_t rows, int64_t* first);

}  // namespace morlfast
