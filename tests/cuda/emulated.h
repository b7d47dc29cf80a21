#pragma once
// What tests ask of the emulated device, beside the boundary: exported by its plugin.

extern "C" {
// `call`, a function of gpu.h ("allocate"), succeeds `after` times more and then fails with `code` until this is called again; "" ends it. One thread.
void fth_cuda_emulated_fault(const char* call, int after, int code);
// Devices, allocations and marks that were made and not freed.
int fth_cuda_emulated_live(void);
}
