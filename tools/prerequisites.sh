#!/usr/bin/env bash
# Says plainly what this machine lacks to build Haversack, all of it at once, and exits with 2; prints the
# Python to use on success. Called by the Makefile; installs nothing.
set -u
missing=()

python=""
for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 &&
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        python=$(command -v "$candidate")
        break
    fi
done

if [ -z "$python" ]; then
    found=$(python3 --version 2>/dev/null || echo "none")
    missing+=("Python 3.11 or newer (found: $found); on Debian and Ubuntu: apt install python3 python3-venv python3-dev")
else
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        missing+=("the venv module of $python; on Debian and Ubuntu: apt install python3-venv")
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)
    [ -f "$headers/Python.h" ] ||
        missing+=("Python's C headers ($headers/Python.h); on Debian and Ubuntu: apt install python3-dev")
fi

compiler=${CXX:-}
for candidate in ${compiler:-g++ clang++ c++}; do
    command -v "$candidate" >/dev/null 2>&1 && compiler=$candidate && break
done
if [ -z "$compiler" ] || ! command -v "$compiler" >/dev/null 2>&1; then
    missing+=("a C++17 compiler (g++ or clang++); on Debian and Ubuntu: apt install g++")
fi

if [ ${#missing[@]} -gt 0 ]; then
    echo "Haversack cannot be built here yet; missing:" >&2
    printf '  - %s\n' "${missing[@]}" >&2
    exit 2
fi
echo "$python"
