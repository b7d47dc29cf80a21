#pragma once
// Reads the .npy files of tests/reference: version 1, C order, float32 or int32.

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace fth::test {

struct Npy {
  std::string dtype;  // "<f4", "<i4"
  std::vector<int64_t> shape;
  std::vector<char> bytes;
  template <class T>
  std::vector<T> values() const {
    std::vector<T> v(bytes.size() / sizeof(T));
    std::memcpy(v.data(), bytes.data(), v.size() * sizeof(T));
    return v;
  }
};

// An empty shape when the file is absent or of another kind.
inline Npy read_npy(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  Npy n;
  if (all.size() < 10 || all.compare(0, 6, "\x93NUMPY") != 0 || all[6] != 1) return n;
  const size_t length = static_cast<unsigned char>(all[8]) + 256u * static_cast<unsigned char>(all[9]);
  const std::string header = all.substr(10, length);
  const size_t type = header.find("'descr': '") + 10;
  n.dtype = header.substr(type, 3);
  for (size_t i = header.find('(') + 1; i < header.find(')');) {
    if (header[i] < '0' || header[i] > '9') {
      ++i;
      continue;
    }
    size_t used = 0;
    n.shape.push_back(std::stoll(header.substr(i), &used));
    i += used;
  }
  n.bytes.assign(all.begin() + static_cast<ptrdiff_t>(10 + length), all.end());
  return n;
}

}  // namespace fth::test
