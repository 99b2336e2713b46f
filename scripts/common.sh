# shellcheck shell=bash
# Sourced by the other scripts: where they run, and the compiler cache.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if command -v ccache >/dev/null; then
  export CMAKE_CXX_COMPILER_LAUNCHER=ccache
  # A second clone of the same sources finds what the first one compiled.
  export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
fi
