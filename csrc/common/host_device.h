// Functions of structs that every device shares: in CUDA sources they are for both sides.
#pragma once

#if defined(__CUDACC__)
#define METADNAS_HOST_DEVICE __host__ __device__
#else
#define METADNAS_HOST_DEVICE
#endif
