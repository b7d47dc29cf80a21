#pragma once
// The kernels themselves, for what compiles them: launch.cu for GPUs, tests/cuda for the host.
#include "backends/cuda/kernels/attention.h"
#include "backends/cuda/kernels/basic.h"
#include "backends/cuda/kernels/list.h"
#include "backends/cuda/kernels/matmul.h"
