// One line per architecture.

#include "core/model/arch/arch.h"

namespace fth {

Result<void> read_llama(ModelReader& reader, Model& model);
Result<void> read_smallthinker(ModelReader& reader, Model& model);

namespace {
constexpr Architecture kArchitectures[] = {
    {"llama", read_llama},
    {"smallthinker", read_smallthinker},
};
}  // namespace

std::span<const Architecture> architectures() { return kArchitectures; }

}  // namespace fth
