# Compiles every kernel for every target, for the gate on spills and registers (code_test.cpp) and for the kernel report.
# Only where nvcc is found: nothing else of the tests needs a CUDA toolkit.
find_program(ORPO_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin /usr/local/cuda/bin)
set(kernel_code "")
if(ORPO_NVCC)
  set(kernel_code ${CMAKE_CURRENT_BINARY_DIR}/kernel_code)
  file(MAKE_DIRECTORY ${kernel_code})
  execute_process(COMMAND ${ORPO_NVCC} --list-gpu-arch OUTPUT_VARIABLE nvcc_targets)
  file(GLOB kernel_headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/cuda/*.cuh)
  list(APPEND kernel_headers ${PROJECT_SOURCE_DIR}/kernels/cuda/ops.h ${PROJECT_SOURCE_DIR}/kernels/bf16.h
       ${PROJECT_SOURCE_DIR}/kernels/batch.h ${PROJECT_SOURCE_DIR}/kernels/orpo_pair.h
       ${PROJECT_SOURCE_DIR}/kernels/border.h ${PROJECT_SOURCE_DIR}/kernels/low_rank.h
       ${PROJECT_SOURCE_DIR}/kernels/cuda/low_rank_cut.h)
  foreach(source ${our_kernels})
    get_filename_component(name ${source} NAME_WE)
    foreach(target 80 86 89 90 100 120)
      if(NOT nvcc_targets MATCHES "compute_${target}")
        continue()
      endif()
      set(out ${kernel_code}/${name}.${target})
      add_custom_command(OUTPUT ${out}.cubin BYPRODUCTS ${out}.log DEPENDS ${source} ${kernel_headers}
        COMMAND sh -c "'${ORPO_NVCC}' -std=c++17 -I'${PROJECT_SOURCE_DIR}' --expt-relaxed-constexpr -arch=sm_${target} \
                       -cubin -Xptxas -v -o '${out}.cubin' '${source}' >'${out}.log' 2>&1 || { cat '${out}.log'; exit 1; }"
        COMMENT "Compiling ${name}.cu for sm_${target}" VERBATIM)
      list(APPEND cubins ${out}.cubin)
    endforeach()
  endforeach()
  add_custom_target(orpo_kernel_code ALL DEPENDS ${cubins})
endif()
