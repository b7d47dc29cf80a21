// The sdk's header carries the version by hand, because it is installed alone: the two must agree.

#include <gtest/gtest.h>

#include <string>

#include "plugins/sdk/backend.h"

TEST(Version, SdkHasTheProjects) {
  EXPECT_STREQ(FTH_SDK_VERSION, FTH_PROJECT_VERSION);
  EXPECT_NE(std::string(FTH_BUILD_STRING).find("forethought " FTH_PROJECT_VERSION ", "), std::string::npos);
}
