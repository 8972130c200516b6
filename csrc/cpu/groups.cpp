#include "morlfast/groups.hpp"

#include <bit>
#include <cstddef>

namespace morlfast {

Groups Groups::contiguous(int64_t rows, int64_t size) {
  Groups groups;
  groups.rows_ = rows;
  groups.size_ = size;
  return groups;
}

template <class Id>
Groups Groups::from_ids(const Id* ids, int64_t stride, int64_t rows) {
  // Open addressing over at most half-full slots; a slot holds a group, whose id is kept beside it.
  const int shift = 64 - std::bit_width(static_cast<uint64_t>(2 * rows + 1));
  std::vector<int32_t> slots(std::size_t{1} << (64 - shift), -1);
  std::vector<Id> id_of;
  std::vector<int32_t> group_of(rows);
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < rows; ++i) {
    const Id id = ids[i * stride];
    // Fibonacci hashing: the high bits of a product with 2^64 / golden ratio.
    uint64_t slot = static_cast<uint64_t>(id) * 0x9e3779b97f4a7c15u >> shift;
    while (slots[slot] >= 0 && id_of[slots[slot]] != id) slot = (slot + 1) & (slots.size() - 1);
    if (slots[slot] < 0) {
      slots[slot] = static_cast<int32_t>(id_of.size());
      id_of.push_back(id);
      sizes.push_back(0);
    }
    group_of[i] = slots[slot];
    ++sizes[slots[slot]];
  }
  Groups groups;
  groups.rows_ = rows;
  groups.offsets_.push_back(0);
  for (int64_t size : sizes) groups.offsets_.push_back(groups.offsets_.back() + size);
  groups.order_.resize(rows);
  std::vector<int64_t> next(groups.offsets_.begin(), groups.offsets_.end() - 1);
  for (int64_t i = 0; i < rows; ++i) groups.order_[next[group_of[i]]++] = i;
  return groups;
}

Groups Groups::by_id(const int64_t* ids, int64_t stride, int64_t rows) { return from_ids(ids, stride, rows); }
Groups Groups::by_id(const int32_t* ids, int64_t stride, int64_t rows) { return from_ids(ids, stride, rows); }

}  // namespace morlfast
