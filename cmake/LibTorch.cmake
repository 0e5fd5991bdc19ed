# Imported targets for LibTorch: LibTorch::cpu; and LibTorch::cuda with OFFSHOOT_CUDA, or for the
# tests where their Python has it.
# Looked for, in this order: OFFSHOOT_LIBTORCH (a folder with include/ and lib/), CMAKE_PREFIX_PATH
# (as `python -c 'import torch; print(torch.utils.cmake_prefix_path)'` prints it, or a LibTorch
# folder), and the per-user cache that scripts/setup.sh fills. TorchConfig.cmake itself is not used:
# the wheel's wants a whole CUDA toolkit even for a CPU build.

set(OFFSHOOT_LIBTORCH "" CACHE PATH "LibTorch folder (with include/ and lib/)")
set(OFFSHOOT_LIBTORCH_VERSION 2.15.0)
set(OFFSHOOT_LIBTORCH_MINIMUM 2.11)

if(DEFINED ENV{OFFSHOOT_CACHE_DIR})
  set(_cache $ENV{OFFSHOOT_CACHE_DIR})
elseif(DEFINED ENV{XDG_CACHE_HOME})
  set(_cache $ENV{XDG_CACHE_HOME}/offshoot)
else()
  set(_cache $ENV{HOME}/.cache/offshoot)
endif()
if(OFFSHOOT_CUDA)
  set(_flavour cuda)
else()
  set(_flavour cpu)
endif()

set(_candidates ${OFFSHOOT_LIBTORCH})
foreach(_prefix IN LISTS CMAKE_PREFIX_PATH)
  list(APPEND _candidates ${_prefix} ${_prefix}/../.. ${_prefix}/torch)
endforeach()
list(APPEND _candidates ${_cache}/libtorch-${OFFSHOOT_LIBTORCH_VERSION}-${_flavour}/torch)

set(_root "")
foreach(_candidate IN LISTS _candidates)
  if(EXISTS ${_candidate}/include/ATen/ATen.h AND EXISTS ${_candidate}/lib/libtorch_cpu.so)
    get_filename_component(_root ${_candidate} REALPATH)
    break()
  endif()
endforeach()
if(NOT _root)
  message(FATAL_ERROR "No LibTorch found. Run scripts/setup.sh, or give one with "
                      "-DCMAKE_PREFIX_PATH=<dir>. Looked in: ${_candidates}")
endif()

file(STRINGS ${_root}/include/torch/headeronly/version.h _version_lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
if(NOT _version_lines)
  file(STRINGS ${_root}/include/torch/csrc/api/include/torch/version.h _version_lines REGEX "define TORCH_VERSION_(MAJOR|MINOR|PATCH) ")
endif()
string(REGEX REPLACE "[^0-9;]" "" _version_list "${_version_lines}")
string(REPLACE ";" "." LIBTORCH_VERSION "${_version_list}")
if(LIBTORCH_VERSION VERSION_LESS OFFSHOOT_LIBTORCH_MINIMUM)
  message(FATAL_ERROR "LibTorch at ${_root} is ${LIBTORCH_VERSION}; ${OFFSHOOT_LIBTORCH_MINIMUM} or newer is needed.")
endif()
message(STATUS "LibTorch ${LIBTORCH_VERSION} at ${_root}")
set(LIBTORCH_ROOT ${_root})

foreach(_lib c10 torch_cpu)
  add_library(LibTorch::${_lib} SHARED IMPORTED)
  set_target_properties(LibTorch::${_lib} PROPERTIES IMPORTED_LOCATION ${_root}/lib/lib${_lib}.so
                        IMPORTED_NO_SONAME TRUE)
endforeach()
add_library(LibTorch::cpu INTERFACE IMPORTED)
target_include_directories(LibTorch::cpu SYSTEM INTERFACE
  ${_root}/include ${_root}/include/torch/csrc/api/include)
target_link_libraries(LibTorch::cpu INTERFACE LibTorch::torch_cpu LibTorch::c10)
target_link_options(LibTorch::cpu INTERFACE -Wl,-rpath,${_root}/lib -Wl,--disable-new-dtags
                    -Wl,--allow-shlib-undefined)
# at::parallel_for is a template over OpenMP: compiled without the flag it is a serial loop. LibTorch's
# own libgomp is the one that is loaded (first in the run path), so there is one pool of threads.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(LibTorch::cpu INTERFACE -fopenmp)
  target_link_libraries(LibTorch::cpu INTERFACE gomp)
endif()

# With OFFSHOOT_CUDA the CUDA parts come with that LibTorch. A plain test build takes them, where they
# are, from the tests' Python (scripts/setup.sh --tests): the same wheel, so that what is compiled for
# the CPU links with them, and the NCCL path is compiled and linked wherever the tests are.
set(_cuda_root "")
if(OFFSHOOT_CUDA)
  set(_cuda_root ${_root})
elseif(OFFSHOOT_TESTS AND NOT OFFSHOOT_SANITIZE AND NOT OFFSHOOT_FUZZ)
  file(GLOB _wheel ${_cache}/test-python/lib/python3*/site-packages/torch)
  set(_own_version "")
  if(_wheel AND EXISTS ${_wheel}/lib/libtorch_cuda.so)
    file(STRINGS ${_root}/include/torch/headeronly/version.h _own_version REGEX "define TORCH_VERSION ")
    file(STRINGS ${_wheel}/include/torch/headeronly/version.h _wheel_version REGEX "define TORCH_VERSION ")
  endif()
  if(_own_version AND _own_version STREQUAL _wheel_version)
    get_filename_component(_cuda_root ${_wheel} REALPATH)
  else()
    message(STATUS "The NCCL path is not compiled: the tests' Python in ${_cache} has no CUDA "
                   "LibTorch ${LIBTORCH_VERSION} (scripts/setup.sh --tests)")
  endif()
endif()

if(_cuda_root)
  # The wheels put CUDA's and NCCL's headers beside torch; a LibTorch of the user's comes with a
  # toolkit. The headers of nvidia-cuda-crt are in Triton's wheel, too.
  get_filename_component(_site ${_cuda_root} DIRECTORY)
  find_path(OFFSHOOT_CUDA_INCLUDE cuda_runtime_api.h
            HINTS ${_site}/nvidia/cu13/include ENV CUDA_HOME PATH_SUFFIXES include
            PATHS /usr/local/cuda/include)
  find_path(OFFSHOOT_CUDA_CRT_INCLUDE crt/host_defines.h
            HINTS ${OFFSHOOT_CUDA_INCLUDE} ${_site}/triton/backends/nvidia/include)
  find_path(OFFSHOOT_NCCL_INCLUDE nccl.h
            HINTS ${_site}/nvidia/nccl/include ${OFFSHOOT_CUDA_INCLUDE} PATHS /usr/local/cuda/include)
  find_library(OFFSHOOT_CUDART NAMES cudart libcudart.so.13 HINTS ${_site}/nvidia/cu13/lib ENV CUDA_HOME
               PATH_SUFFIXES lib64 PATHS /usr/local/cuda/lib64)
  foreach(_needed OFFSHOOT_CUDA_INCLUDE OFFSHOOT_CUDA_CRT_INCLUDE OFFSHOOT_NCCL_INCLUDE OFFSHOOT_CUDART)
    if(NOT ${_needed})
      message(FATAL_ERROR "${_needed} was not found. Run scripts/setup.sh --cuda, or set it by hand.")
    endif()
  endforeach()
  foreach(_lib c10_cuda torch_cuda)
    add_library(LibTorch::${_lib} SHARED IMPORTED)
    set_target_properties(LibTorch::${_lib} PROPERTIES IMPORTED_LOCATION ${_cuda_root}/lib/lib${_lib}.so
                          IMPORTED_NO_SONAME TRUE)
  endforeach()
  add_library(LibTorch::cuda INTERFACE IMPORTED)
  target_include_directories(LibTorch::cuda SYSTEM INTERFACE ${OFFSHOOT_CUDA_INCLUDE}
                             ${OFFSHOOT_CUDA_INCLUDE}/cccl ${OFFSHOOT_NCCL_INCLUDE}
                             ${OFFSHOOT_CUDA_CRT_INCLUDE})
  target_compile_definitions(LibTorch::cuda INTERFACE OFFSHOOT_CUDA=1 USE_C10D_NCCL=1)
  # torch_cuda registers its kernels when it is loaded: it must not be dropped as unneeded.
  target_link_libraries(LibTorch::cuda INTERFACE LibTorch::cpu
    -Wl,--no-as-needed LibTorch::torch_cuda LibTorch::c10_cuda ${OFFSHOOT_CUDART} -Wl,--as-needed)
endif()
