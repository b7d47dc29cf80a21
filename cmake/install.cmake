# Installs the program, the plugins, the libraries and headers, and a CMake package: find_package(Forethought), Forethought::forethought for
# programs that run models, Forethought::sdk for backends.
include(CMakePackageConfigHelpers)
get_property(libraries GLOBAL PROPERTY FTH_LIBRARIES)
add_library(forethought_api INTERFACE)
target_link_libraries(forethought_api INTERFACE fth_engine fth_builtin)
set_target_properties(forethought_api PROPERTIES EXPORT_NAME forethought)
add_library(forethought_sdk INTERFACE)
target_link_libraries(forethought_sdk INTERFACE fth_expected)
target_include_directories(forethought_sdk INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>
                           $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/forethought>)
set_target_properties(forethought_sdk PROPERTIES EXPORT_NAME sdk)
target_include_directories(fth_options INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}/forethought>)
install(TARGETS ${libraries} fth_options fth_expected forethought_api forethought_sdk EXPORT ForethoughtTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT ForethoughtTargets NAMESPACE Forethought:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Forethought)
configure_package_config_file(cmake/ForethoughtConfig.cmake.in ${CMAKE_BINARY_DIR}/ForethoughtConfig.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Forethought)
write_basic_package_version_file(${CMAKE_BINARY_DIR}/ForethoughtConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_BINARY_DIR}/ForethoughtConfig.cmake ${CMAKE_BINARY_DIR}/ForethoughtConfigVersion.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/Forethought)
foreach(folder core/base core/profile core/device core/model core/plan core/experts core/text core/engine plugins/abi plugins/sdk)
  install(DIRECTORY ${folder} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/forethought/${folder}/.. FILES_MATCHING PATTERN "*.h" PATTERN "*.def")
endforeach()
