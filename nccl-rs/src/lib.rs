//! Safe NCCL bindings, loaded at run time, with no CUDA toolkit to build.
