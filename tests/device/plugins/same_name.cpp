// Has the name, and the device name, of the backend that the test links in.
#include "tests/device/test_backend.h"
FTH_EXPORT_BACKEND(fth::sdk::query<fth::test::AddBackend<fth::test::DefaultConfig>>)
