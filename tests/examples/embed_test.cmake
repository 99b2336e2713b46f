# Installs Witan into an empty prefix, builds examples/embed against that alone, and runs it on a small model.

# Runs a command that has to succeed; its standard output is in `output` then.
function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
  if(NOT result EQUAL 0)
    string(JOIN " " command ${ARGN})
    message(FATAL_ERROR "${command}\nended with ${result}:\n${output}\n${errors}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

file(REMOVE_RECURSE ${WORK_DIR})
set(prefix ${WORK_DIR}/prefix)
set(model ${WORK_DIR}/tiny.gguf)

run(${CMAKE_COMMAND} --install ${BUILD_DIR} --config ${CONFIG} --prefix ${prefix})
run(${CMAKE_COMMAND} -S ${EXAMPLE_DIR} -B ${WORK_DIR}/build -G ${GENERATOR} -D CMAKE_PREFIX_PATH=${prefix}
    -D CMAKE_CXX_COMPILER=${CXX_COMPILER} -D CMAKE_BUILD_TYPE=${CONFIG})
run(${CMAKE_COMMAND} --build ${WORK_DIR}/build --config ${CONFIG})
run(${prefix}/bin/witan make-model --arch qwen3moe --preset tiny --type Q4_K ${model})

run(${prefix}/bin/witan run --quiet --model ${model} --prompt "Once upon a time" --num-tokens 32)
set(expected "${output}")
run(${WORK_DIR}/build/embed ${model} "Once upon a time")
if(NOT output STREQUAL expected OR output STREQUAL "\n")
  message(FATAL_ERROR "embed wrote '${output}' where witan run writes '${expected}'")
endif()

# A wrong path is an error of its own, not a crash.
execute_process(COMMAND ${WORK_DIR}/build/embed ${WORK_DIR}/no-such.gguf x
                RESULT_VARIABLE result OUTPUT_QUIET ERROR_VARIABLE message)
if(NOT result EQUAL 1 OR NOT message MATCHES "no-such.gguf")
  message(FATAL_ERROR "a missing model ended with '${result}' and said: ${message}")
endif()
file(REMOVE_RECURSE ${WORK_DIR})
