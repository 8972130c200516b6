// Every family adds its operators to the module, each with its schema for torch's dispatcher.
#pragma once
#include <nanobind/nanobind.h>

namespace morlfast::bindings {

namespace nb = nanobind;

void define_advantages(nb::module_& module, nb::dict& schemas);
void define_hypervolume(nb::module_& module, nb::dict& schemas);
void define_hypervolume_cuda(nb::module_& module);
void define_indicators(nb::module_& module, nb::dict& schemas);
void define_logprobs(nb::module_& module, nb::dict& schemas);
void define_pareto(nb::module_& module, nb::dict& schemas);
void define_returns(nb::module_& module, nb::dict& schemas);
void define_rollouts(nb::module_& module, nb::dict& schemas);
void define_tokens(nb::module_& module, nb::dict& schemas);

}  // namespace morlfast::bindings
