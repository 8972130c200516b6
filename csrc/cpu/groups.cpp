#include "morlfast/groups.hpp"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstring>

#include "parallel.hpp"

namespace morlfast {
namespace {

constexpr uint64_t kGolden = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio

/// Every bit of the key in the high bits, also of keys in steps of anything.
uint64_t mixed(uint64_t key) {
  key = (key ^ key >> 32) * kGolden;
  return (key ^ key >> 29) * kGolden;
}

/// Open addressing over at most half-full slots, each with an entry's number or -1.
class Slots {
 public:
  explicit Slots(int64_t entries)
      : shift_(64 - std::bit_width(static_cast<uint64_t>(2 * entries + 1))),
        slots_(std::size_t{1} << (64 - shift_), -1) {}

  /// The slot of an entry that is_same(number), or the free slot where it belongs.
  template <class IsSame>
  int32_t& find(uint64_t key, const IsSame& is_same) {
    uint64_t slot = mixed(key) >> shift_;
    while (slots_[slot] >= 0 && !is_same(slots_[slot])) slot = (slot + 1) & (slots_.size() - 1);
    return slots_[slot];
  }

 private:
  int shift_;
  std::vector<int32_t> slots_;
};

/// Four words at a time, so that a multiplication's latency is not paid for each.
uint64_t hash_of(const char* data, int64_t bytes) {
  uint64_t lanes[4] = {1, 2, 3, 4};
  const auto take = [&](int lane, const char* from, std::size_t length) {
    uint64_t word = 0;
    std::memcpy(&word, from, length);
    lanes[lane] = std::rotl((lanes[lane] ^ word) * kGolden, 29);
  };
  int64_t at = 0;
  for (; at + 32 <= bytes; at += 32)
    for (int lane = 0; lane < 4; ++lane) take(lane, data + at + int64_t{8} * lane, 8);
  for (; at + 8 <= bytes; at += 8) take(static_cast<int>(at / 8 % 4), data + at, 8);
  if (at < bytes) take(0, data + at, static_cast<std::size_t>(bytes - at));
  uint64_t hash = 0;
  for (const uint64_t lane : lanes) hash = std::rotl((hash ^ lane) * kGolden, 31);
  return hash;
}

}  // namespace

Groups Groups::contiguous(int64_t rows, int64_t size) {
  Groups groups;
  groups.rows_ = rows;
  groups.size_ = size;
  return groups;
}

Groups Groups::by_offsets(const int64_t* offsets, int64_t count) {
  Groups groups;
  groups.rows_ = offsets[count];
  groups.offsets_.assign(offsets, offsets + count + 1);
  return groups;
}

template <class Id>
Groups Groups::from_ids(const Id* ids, int64_t stride, int64_t rows) {
  Slots slots(rows);
  std::vector<Id> id_of;
  std::vector<int32_t> group_of(rows);
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < rows; ++i) {
    const Id id = ids[i * stride];
    int32_t& group = slots.find(static_cast<uint64_t>(id), [&](int32_t g) { return id_of[g] == id; });
    if (group < 0) {
      group = static_cast<int32_t>(id_of.size());
      id_of.push_back(id);
      sizes.push_back(0);
    }
    group_of[i] = group;
    ++sizes[group];
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

void group_rows(const void* data, int64_t row_stride_bytes, int64_t bytes, int64_t rows, int64_t* first) {
  const auto row = [&](int64_t i) { return static_cast<const char*>(data) + i * row_stride_bytes; };
  std::vector<uint64_t> hashes(rows);
  parallel_for(rows, rows * bytes >= (1 << 20), [&](int64_t i) { hashes[i] = hash_of(row(i), bytes); });
  Slots slots(rows);
  for (int64_t i = 0; i < rows; ++i) {
    int32_t& lowest = slots.find(hashes[i], [&](int32_t other) {
      return hashes[other] == hashes[i] && std::equal(row(other), row(other) + bytes, row(i));
    });
    if (lowest < 0) lowest = static_cast<int32_t>(i);
    first[i] = lowest;
  }
}

}  // namespace morlfast
