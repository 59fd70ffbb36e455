#!/usr/bin/env bash
# What the compiler made of the kernels for GPUs, by what ptxas said while they were built (kernels/*.ptxas) and by the
# PTX of the oldest architecture (kernels/*.ptx): three architectures and no warning, no spills, registers within bounds,
# 128-bit accesses in the kernels that claim them. And a planted spill does not build. Takes seconds.
source "$(dirname "$0")/../shell.sh"
kernels=$build/kernels
[ -e "$kernels/command" ] && [ -e "$build/kinora-cuda.so" ] || {
    echo "built without nvcc: skipped"
    exit 77
}

# The most registers of a kernel on any architecture: 65,536 of a multiprocessor make 2,048 threads with 32 each.
# Where nothing else is said, 256 threads a block; the first pattern that fits counts.
bounds='
(forward|dq|dkv|backward)_kernel<(64|128|256).*> 255
fma 255
. 64
'

# Each of these instances reads and writes 128 bits at a time: name, loads, stores; 0: claims none.
wide='
layer_norm_kernel<.*, (4|8)> 1 1
layer_norm_backward_kernel<.*, (4|8)> 1 1
'

# Lines "file arch kernel registers stack spilled" of all kernels.
cat "$kernels"/*.ptxas | c++filt >said.txt
awk '
    /Compiling entry function/ { match($0, /\047.*\047 for/); name = substr($0, RSTART + 1, RLENGTH - 6); split($0, q, "\047"); arch = q[length(q) - 1] }
    /bytes stack frame/ { stack = $1; spilled = $5 + $9 }
    /Used [0-9]+ registers/ { match($0, /Used [0-9]+/); print arch "\t" substr($0, RSTART + 5, RLENGTH - 5) "\t" stack "\t" spilled "\t" name }
' said.txt >kernels.txt
head -5 kernels.txt
