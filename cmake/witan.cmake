# Compile settings and the helpers every folder's CMakeLists.txt uses.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

# -ffp-contract=off: an fma happens only where the source says so; the determinism contract needs it.
add_compile_options(-Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Werror -ffp-contract=off)
# A pragma that silences a warning of g++ is no fault.
add_compile_options($<$<CXX_COMPILER_ID:Clang>:-Wno-unknown-warning-option>)
if(WITAN_SANITIZE)
  add_compile_options(-fsanitize=${WITAN_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${WITAN_SANITIZE})
  # GCC 12 sees uninitialised members of std::variant in instrumented code.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    add_compile_options(-Wno-maybe-uninitialized)
  endif()
endif()

# witan_together(TARGET [ALONE ...]): in builds with sanitizers the sources of TARGET are compiled together, which saves
# minutes, but for those of ALONE, whose names clash with others'.
function(witan_together target)
  cmake_parse_arguments(ARG "" "" "ALONE" ${ARGN})
  if(WITAN_SANITIZE)
    set_target_properties(${target} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 12)
    set_source_files_properties(${ARG_ALONE} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
  endif()
endfunction()

# witan_layer(NAME SOURCES ... DEPENDS ...): the static library witan_NAME of src/NAME.
function(witan_layer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPENDS;PRIVATE_DEPENDS" ${ARGN})
  # Header-only, and seen by .cpp files alone: nothing that the users of an installed library would need.
  list(TRANSFORM ARG_PRIVATE_DEPENDS REPLACE "^nlohmann_json::nlohmann_json$"
       "$<BUILD_INTERFACE:nlohmann_json::nlohmann_json>")
  set_property(GLOBAL APPEND PROPERTY WITAN_LAYERS ${name})
  add_library(witan_${name} STATIC ${ARG_SOURCES})
  add_library(witan::${name} ALIAS witan_${name})
  target_compile_features(witan_${name} PUBLIC cxx_std_20)
  target_include_directories(witan_${name} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/witan>)
  target_link_libraries(witan_${name} PUBLIC ${ARG_DEPENDS} PRIVATE ${ARG_PRIVATE_DEPENDS})
  set_target_properties(witan_${name} PROPERTIES EXPORT_NAME ${name})
endfunction()

# witan_isa_flags(ISA FILES...): compiles FILES for one instruction set. Such files call no STL and no shared inline
# function: the linker could hand their copy to code that runs on an older CPU.
set(WITAN_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi2)
set(WITAN_FLAGS_avx512 ${WITAN_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl)
set(WITAN_FLAGS_avx512_vnni ${WITAN_FLAGS_avx512} -mavx512vnni)
set(WITAN_FLAGS_avx512_bf16 ${WITAN_FLAGS_avx512_vnni} -mavx512bf16)
function(witan_isa_flags isa)
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${WITAN_FLAGS_${isa}}")
endfunction()

# witan_test(NAME SOURCES ... [MORE_SOURCES ...] [ALONE ...] DEPENDS ... [LABELS ...]): a GoogleTest program, one ctest
# test per TEST. SOURCES are compiled as one file, which takes a third of the time, and so are MORE_SOURCES, whose names
# clash with those of SOURCES; each file of ALONE is compiled by itself.
option(WITAN_UNITY_TESTS "Compile the sources of a test program together" ON)
function(witan_test name)
  cmake_parse_arguments(ARG "" "" "SOURCES;MORE_SOURCES;ALONE;DEPENDS;LABELS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES} ${ARG_MORE_SOURCES} ${ARG_ALONE})
  set_target_properties(${name} PROPERTIES UNITY_BUILD ${WITAN_UNITY_TESTS} UNITY_BUILD_MODE GROUP)
  set_source_files_properties(${ARG_SOURCES} PROPERTIES UNITY_GROUP sources)
  set_source_files_properties(${ARG_MORE_SOURCES} PROPERTIES UNITY_GROUP more_sources)
  # A third less to compile, and what is tested is linked: the layers keep their -O3.
  target_compile_options(${name} PRIVATE $<$<CONFIG:Release>:-O1>)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_link_libraries(${name} PRIVATE ${ARG_DEPENDS} GTest::gmock GTest::gtest_main)
  target_compile_definitions(${name} PRIVATE
    WITAN_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/data"
    WITAN_GOLDENS="${PROJECT_SOURCE_DIR}/../shared/goldens")
  if(WITAN_SANITIZE)  # as for apps/: saves minutes
    get_property(first GLOBAL PROPERTY WITAN_FIRST_TEST)
    if(first)
      target_precompile_headers(${name} REUSE_FROM ${first})
    else()
      target_precompile_headers(${name} PRIVATE <gmock/gmock.h> <gtest/gtest.h> <fmt/format.h> <fmt/ranges.h>
        <algorithm> <functional> <map> <random> <span> <string> <vector>)
      set_property(GLOBAL PROPERTY WITAN_FIRST_TEST ${name})
    endif()
  endif()
  gtest_discover_tests(${name} NO_PRETTY_VALUES DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${ARG_LABELS}")
endfunction()
