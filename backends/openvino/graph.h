#pragma once
// A plan and its weights as one OpenVINO model of static shapes: parameters in the order of GraphPlan::inputs, results in that of its outputs.

#include <memory>
#include <vector>

#include <openvino/core/model.hpp>

#include "backends/openvino/plan.h"

namespace fth::openvino {

// What a graph is made for.
struct Target {
  WeightForm form = WeightForm::compressed;
  bool half = false;  // the device computes in f16
};

// weights: the bytes of each WEIGHT tensor by its index in the segment, others null; read during the call only.
std::shared_ptr<ov::Model> build_model(const GraphPlan& plan, const std::vector<const std::byte*>& weights, const Target& to);

ov::element::Type element_of(const Port& p);
ov::Shape shape_of(const Port& p);

}  // namespace fth::openvino
