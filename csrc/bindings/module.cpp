#include <nanobind/nanobind.h>

#include "morlfast/build.hpp"
#include "operators.hpp"

namespace nb = nanobind;

NB_MODULE(_C, module) {
  module.doc() = "Compiled operators of morlfast; call them through morlfast or torch.ops.morlfast.";
  nb::dict schemas;
  morlfast::bindings::define_advantages(module, schemas);
  morlfast::bindings::define_hypervolume(module, schemas);
  morlfast::bindings::define_hypervolume_cuda(module);
  morlfast::bindings::define_indicators(module, schemas);
  morlfast::bindings::define_logprobs(module, schemas);
  morlfast::bindings::define_pareto(module, schemas);
  morlfast::bindings::define_returns(module, schemas);
  morlfast::bindings::define_rollouts(module, schemas);
  morlfast::bindings::define_tokens(module, schemas);
  module.attr("schemas") = schemas;

  nb::dict build;
  build["version"] = MORLFAST_VERSION;
  build["compiler"] = MORLFAST_COMPILER;
  build["binding"] = MORLFAST_BINDING;
  build["simd_levels"] = morlfast::simd_levels();
  build["simd"] = morlfast::simd_level();
#ifdef MORLFAST_HAS_CUDA
  build["cuda"] = MORLFAST_CUDA_VERSION;
  build["cuda_archs"] = MORLFAST_CUDA_ARCHS;
#else
  build["cuda"] = nb::none();
  build["cuda_archs"] = "";
#endif
  module.attr("build_info") = build;
}
