#include "driver.hpp"

namespace driver {

void check_select_rollouts(Random&) {}

}  // namespace driver
