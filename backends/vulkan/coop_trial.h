#pragma once
// Whether a device's cooperative matrices are worth it: products of both kinds, compared and timed on the device itself.

#include "backends/vulkan/executable.h"

namespace fth::vulkan {

// Makes the pipelines of a plan's products in cooperative matrices; the driver's error if it refuses one.
Result<> coop_pipelines(Context& context, const SegmentPlan& plan);

// At open. coopmat=auto: keeps cooperative matrices where the device is timed (a GPU, or measure=on), every type's products agree with the plain ones and
// a large product is faster; else drops them with the reason. coopmat=on: an error if a product of q4_0 does not agree or its pipeline is
// refused.
Result<> try_coop(Context& context);

}  // namespace fth::vulkan
