#!/usr/bin/env bash
# What the compiler made of the kernels for GPUs, by what ptxas said while they were built (kernels/*.ptxas) and by the
# PTX for the oldest architecture (kernels/*.ptx): three architectures and no warning, no spills, registers within
# bounds, 128-bit accesses in the kernels that claim them. And a planted spill does not build.
source "$(dirname "$0")/../shell.sh"
kernels=$build/kernels
[ -e "$kernels/command" ] && [ -e "$build/kinora-cuda.so" ] || {
    echo "built without nvcc: skipped"
    exit 77
}

# The most registers of kernels on any architecture; the first pattern that fits counts. Attention has its sums in
# registers, and so have products, of whose blocks of 256 threads a multiprocessor has two. Backward passes over rows
# have sums in registers too, and blocks of 192 threads for Wan 1.3B, of which a multiprocessor of 65,536 registers has
# four. Layer norm has its row in registers, and blocks of 256 threads, three of them. All others have blocks of 256,
# four of them at least.
cat >bounds <<'END'
(forward|dq|dkv)_kernel< 255
product_kernel 128
(row_pass_kernel<|norm_gate_kernel) 80
layer_norm_kernel< 80
. 64
END

# Which kernels move 128 bits at a time: at least so many loads, stores and asynchronous copies of that width. Sums over
# tokens have four loads under way, backward passes those of two tokens, or as many bytes of one, layer norm six. (The compiler cuts the stores of add_row_kernel, for small tables, in four.)
cat >wide <<'END'
layer_norm_kernel<.*,[48],false> 6 1 0
layer_norm_kernel<.*,[48],true> 12 7 0
rms_norm_kernel<.*,[48], 3 1 0
squares_kernel<.*,[48]> 1 0 0
squares_backward_kernel<.*,[48]> 1 1 0
kn_row_sum_kernel<.*,[48]> 4 0 0
kn_row_pass_kernel<.*,[48]> 8 4 0
norm_gate_kernel 8 4 0
modulate_kernel<.*,[48]> 2 1 0
map_one< 1 1 0
map_two< 2 1 0
add_row_kernel<.*,[48]> 1 0 0
cast_kernel< 1 1 0
rope_kernel<.*,[24]> 1 1 0
copy_kernel<uint4, 1 1 0
gather_kernel<uint4> 1 1 0
parts_kernel<uint4> 1 1 0
squares_kernel<(float|__nv_bfloat16)> 1 0 0
adamw_kernel 4 3 0
add_parts_kernel 1 1 0
add_sum_kernel 2 1 0
merge_kernel<8> 2 1 0
statistics_kernel<.*,[48]> 2 0 0
(forward|dq|dkv)_kernel<[0-9] 0 0 2
tensor_product_kernel< 1 1 4
END

short_names() { # without spaces, results and parameters: what stands before the name's last parenthesis opens
    c++filt | sed 's/(anonymous namespace)::\|unsigned \|void //g; s/, /,/g'
}

# ---- what ptxas said: lines "architecture registers stack spilled name" ----

cat "$kernels"/*.ptxas | short_names >said
awk '
    function after(text, mark) { return substr(text, index(text, mark) + length(mark)) }
    /Compiling entry function/ {
        name = after($0, "function \047"); arch = after(name, "\047 for \047")
        name = substr(name, 1, index(name, "(") - 1); sub(/\047.*/, "", arch)
    }
    / bytes stack frame/ { stack = $1; spilled = $5 + $9 }
    /Used [0-9]+ registers/ { split(after($0, "Used "), used, " "); print arch, used[1], stack, spilled, name }
' said >compiled
other=$(grep -vE '^ptxas info +: (Compiling entry|Function properties|Used|Compile time|[0-9]+ bytes gmem)|bytes stack frame' said || true)
[ -z "$other" ] || fail "the compiler had more to say: $(head -n 3 <<<"$other")"

awk '
    FILENAME == "bounds" { pattern[++count] = $1; most[count] = $2; next }
    $3 + $4 > 0 { print $5 " has a stack of " $3 " bytes and spills " $4 " on " $1 }
    {
        for (i = 1; i <= count; i++)
            if ($5 ~ pattern[i]) break
        if ($2 > most[i]) print $5 " has " $2 " registers on " $1 ", more than " most[i]
        seen[$5] = seen[$5] " " $1
        if ($2 + 0 > used[i]) used[i] = $2 + 0
    }
    END {
        for (name in seen)
            if (!(seen[name] ~ /sm_80/ && seen[name] ~ /sm_90/ && seen[name] ~ /sm_100/))
                print name " is compiled for" seen[name] " alone"
        for (i = 1; i <= count; i++)
            printf "%s: at most %d registers of %d\n", pattern[i], used[i], most[i] >"used"
    }
' bounds compiled >wrong
[ ! -s wrong ] || fail "$(head -n 5 wrong)"

# ---- what is in the PTX: lines "loads stores copies name" ----

cat "$kernels"/*.ptx | awk '
    /\.entry / { name = $0; sub(/.*\.entry /, "", name); sub(/\(.*/, "", name); seen[name] = 1 }
    / *ld\.global[a-zA-Z0-9_.:]*\.v4\.[a-z]*32/ { loads[name]++ }
    / *st\.global[a-zA-Z0-9_.:]*\.v4\.[a-z]*32/ { stores[name]++ }
    /cp\.async\.c[ag]\.shared[a-z:]*\.global.*, 16[,;]/ { copies[name]++ }
    END { for (name in seen) print loads[name] + 0, stores[name] + 0, copies[name] + 0, name }
' | short_names | sed 's/^\([0-9]* [0-9]* [0-9]* [^(]*\)(.*/\1/' >moved
awk '
    FILENAME == "wide" { pattern[++count] = $1; loads[count] = $2; stores[count] = $3; copies[count] = $4; next }
    {
        for (i = 1; i <= count; i++) {
            if ($4 !~ ("^" pattern[i])) continue
            if ($1 < loads[i] || $2 < stores[i] || $3 < copies[i])
                print $4 " has " $1 " loads, " $2 " stores and " $3 " copies of 128 bits, not " loads[i] ", " stores[i] " and " copies[i]
            found[i]++
        }
    }
    END { for (i = 1; i <= count; i++) if (!found[i]) print "there is no kernel " pattern[i] }
' wide moved >wrong
[ ! -s wrong ] || fail "$(head -n 5 wrong)"

# ---- a kernel that needs more registers than it is given ----

cat >planted.cu <<'END'
__global__ void __launch_bounds__(1024, BLOCKS) planted(float *x)
{
    float v[64];
#pragma unroll
    for (int i = 0; i < 64; i++)
        v[i] = x[i * 1024 + threadIdx.x];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 64; i++)
        x[(63 - i) * 1024 + threadIdx.x] = v[i] * v[(i * 7 + 1) % 64];
}
END
mapfile -t command < <(grep -v 'compute_90\|compute_100' "$kernels/command")
"${command[@]}" -DBLOCKS=2 -c planted.cu -o spilled.o >spilled.log 2>&1 && fail "a kernel that spills was compiled" || true
grep -q "spilled to local memory" spilled.log || fail "a spill is not named: $(cat spilled.log)"
sed -i 's/1024, BLOCKS/256, BLOCKS/' planted.cu
"${command[@]}" -DBLOCKS=1 -c planted.cu -o held.o >held.log 2>&1 || fail "without the spill: $(cat held.log)"

cat used
echo "$(wc -l <moved) kernels for three architectures: no spills, registers within bounds, 128 bits at a time as claimed"
