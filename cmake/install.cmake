# Installs the layers as a CMake package: find_package(witan) gives witan::witan (all layers), or witan::engine and its
# neighbours one by one. Headers keep their paths under include/witan, so includes read as they do in src/.

include(CMakePackageConfigHelpers)

get_property(layers GLOBAL PROPERTY WITAN_LAYERS)
list(TRANSFORM layers PREPEND witan_ OUTPUT_VARIABLE layer_targets)

add_library(witan_all INTERFACE)
add_library(witan::witan ALIAS witan_all)
set_target_properties(witan_all PROPERTIES EXPORT_NAME witan)
target_link_libraries(witan_all INTERFACE ${layer_targets})

install(TARGETS witan_all ${layer_targets} EXPORT witanTargets)
foreach(layer ${layers})
  install(DIRECTORY ${PROJECT_SOURCE_DIR}/src/${layer} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/witan
          FILES_MATCHING PATTERN "*.h")
endforeach()
install(TARGETS witan)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/witan)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/witanConfig.cmake.in witanConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(witanConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/witanConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/witanConfigVersion.cmake
        DESTINATION ${package_dir})
install(EXPORT witanTargets NAMESPACE witan:: DESTINATION ${package_dir})
