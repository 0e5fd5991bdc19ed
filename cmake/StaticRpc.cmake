# Links gRPC, Protobuf, Abseil, RE2 and yaml-cpp from their archives. Debian and Ubuntu ship both
# kinds, but their CMake packages name the shared libraries only: some fifty, and loading them is most
# of what a short command costs. All or none of them, or there would be two copies of Abseil's statics
# in a program; where an archive is missing, and under a sanitizer, the shared ones are linked.
# OpenSSL stays shared always: its security updates should not need a build.
option(OFFSHOOT_STATIC_RPC "Link gRPC, Protobuf and Abseil statically where their archives are" ON)

function(offshoot_link_rpc_statically)
  get_property(_imported DIRECTORY PROPERTY IMPORTED_TARGETS)
  set(_targets ${_imported})
  list(FILTER _targets INCLUDE REGEX
       "^(absl::.*|gRPC::(address_sorting|gpr|grpc|grpc\\+\\+|grpc\\+\\+_reflection|upb)|protobuf::libprotobuf|re2::re2|c-ares::cares|yaml-cpp)$")
  foreach(_target IN LISTS _targets)
    get_target_property(_type ${_target} TYPE)
    if(_type STREQUAL "INTERFACE_LIBRARY")
      continue()
    endif()
    get_target_property(_configurations ${_target} IMPORTED_CONFIGURATIONS)
    set(_property IMPORTED_LOCATION)
    if(_configurations)
      list(GET _configurations 0 _configuration)
      set(_property IMPORTED_LOCATION_${_configuration})
    endif()
    get_target_property(_shared ${_target} ${_property})
    string(REGEX REPLACE "\\.so[.0-9]*$" ".a" _archive "${_shared}")
    if(NOT EXISTS "${_archive}")
      message(STATUS "gRPC and Abseil are linked as shared libraries: ${_target} has no archive")
      return()
    endif()
    list(APPEND _changes ${_target} ${_property} ${_archive})
  endforeach()
  # Found by pkg-config, this one is no library but the words -lre2.
  find_library(OFFSHOOT_RE2_ARCHIVE libre2.a)
  get_target_property(_re2_type re2::re2 TYPE)
  if(_re2_type STREQUAL "INTERFACE_LIBRARY" AND OFFSHOOT_RE2_ARCHIVE)
    set_target_properties(re2::re2 PROPERTIES INTERFACE_LINK_LIBRARIES
                          "${OFFSHOOT_RE2_ARCHIVE};Threads::Threads")
  endif()
  while(_changes)
    list(POP_FRONT _changes _target _property _archive)
    set_target_properties(${_target} PROPERTIES ${_property} ${_archive})
  endwhile()
  # An archive does not say what it needs itself.
  set_property(TARGET protobuf::libprotobuf APPEND PROPERTY INTERFACE_LINK_LIBRARIES ZLIB::ZLIB)
  set(OFFSHOOT_RPC_IS_STATIC ON PARENT_SCOPE)
  message(STATUS "gRPC, Protobuf and Abseil are linked statically")
endfunction()

if(OFFSHOOT_STATIC_RPC AND NOT OFFSHOOT_SANITIZE AND NOT OFFSHOOT_FUZZ)
  offshoot_link_rpc_statically()
endif()
