#!/bin/bash
# scripts/lifecycle.sh: a sandbox's whole life by pipes and jq alone, without the supervisor, checked by content at every
# step. Run it as root: scripts/lab scripts/lifecycle.sh, or on a host that has device-mapper and KVM. docs/lifecycle.md
#   WRENN_VMM (the first that is there: docs/wrenn-launch.md)   WRENN_VCPUS (1)   WRENN_BIN_DIR (target/debug)
set -euo pipefail
shopt -s inherit_errexit
repo=$(dirname "$(dirname "$(readlink -f "$0")")")
export PATH=${WRENN_BIN_DIR:-$repo/target/debug}:$PATH
image=$repo/target/image
vmm=${WRENN_VMM:-} vcpus=${WRENN_VCPUS:-1}

# Roots of its own, so that nothing of this host's is touched. Short: a socket's path may have 107 bytes.
work=$(mktemp -d /tmp/wrenn-life.XXXX)
export WRENN_ROOT=$work/root WRENN_RUN=$work/run

# --- The pipes (README.md). Each takes a sandbox's document on stdin and prints what became of it. ------------------
create()   { wrenn-cow create | wrenn-net create | wrenn-launch boot | wrenn-guest ready | wrenn-guest init; }
wake()     { wrenn-net create | restore | wrenn-launch resume | wrenn-guest ready | wrenn-guest init - "$@"; }
restore()  { if plain; then unpack | wrenn-launch restore | repack; else wrenn-uffd serve - detach:=true | wrenn-launch restore; fi; }
resume()   { wrenn-cow restore | wake | wrenn-guest preload; }
launch()   { wrenn-cow create | wake confirm:=true; }
freeze()   { wrenn-launch pause | wrenn-launch snapshot | wrenn-uffd stats | wrenn-snap pack; }
teardown() { wrenn-launch stop | wrenn-uffd stop | wrenn-net remove | wrenn-cow remove; }
template() { wrenn-cow flatten | wrenn-snap template; }
destroy()  { wrenn-launch stop --undo | wrenn-uffd stop --undo | wrenn-net remove --undo | wrenn-cow delete --undo; }

# Cloud Hypervisor takes no page server and has no Diffs: it opens all of the memory as one file, which a template has and
# which is made of a pause for as long as the restore takes; and it writes all of it, of which is kept what differs.
plain()    { [[ $vmm == cloud-hypervisor ]]; }
unpack()   {
    local document dir
    document=$(cat) dir=$(jq -r .snapshot.dir <<<"$document")
    [[ -f $dir/memfile.header ]] || { cat <<<"$document"; return; }
    jq -c --arg raw "${dir%/*}/memory-ranges" '.snapshot.raw = $raw' <<<"$document" | wrenn-snap unpack
}
repack()   {
    local document raw
    document=$(cat) raw=$(jq -r '.snapshot.raw // empty' <<<"$document")
    rm -f ${raw:+"$raw"}
    jq -c 'del(.snapshot.raw)' <<<"$document"
}

# --- Documents: one file per sandbox, $work/ID.json. -------------------------------------------------------------------
document() { # ID ROOTFS: a new one
    mkdir -p "$WRENN_ROOT/sandboxes/$1"
    jq -n --arg id "$1" --arg rootfs "$2" --arg vmm "$vmm" --argjson vcpus "$vcpus" --arg kernels "$WRENN_ROOT/kernels" \
        '{$id, $rootfs, spec: ({$vcpus, memory_mib: 256, disk_mib: 512, env: {GREETING: "hello"}} + if $vmm == "" then {} else {$vmm} end),
          kernel: "\($kernels)/vmlinux", initrd: "\($kernels)/initrd"}' >"$work/$1.json"
}
edit() { # ID JQ-ARGUMENTS…
    local file=$work/$1.json; shift
    jq "$@" "$file" >"$file.new" && mv "$file.new" "$file"
}
through() { # ID PIPE: the document through the pipe. A failed one is kept too: it names what there is to undo.
    local file=$work/$1.json status=0
    "$2" <"$file" >"$file.new" || status=$?
    [[ ! -s $file.new ]] || mv "$file.new" "$file"
    ((status == 0)) || jq '.error // empty' "$file" >&2
    return "$status"
}
get() { jq -r "$2" "$work/$1.json"; } # ID PATH

generation() { # ID KIND: where its next pause goes, and what that is relative to
    local dir=$WRENN_ROOT/sandboxes/$1 last
    last=$(find "$dir" -maxdepth 1 -name 'gen-*' -printf '%f\n' | sort | tail -n 1)
    printf -v dir '%s/gen-%04d' "$dir" $((10#0${last##*-} + 1))
    ! plain || set -- "$1" full
    edit "$1" --arg dir "$dir" --arg kind "$2" '.snapshot = {$dir, $kind} + (if .vm.base then {parent: .vm.base} else {} end)'
}
pause() { # ID KIND: until pack has published the generation the guest can be given back; after it nothing can be lost
    generation "$1" "$2"
    through "$1" freeze || { give_back "$1"; return 1; }
    through "$1" teardown
    wrenn-snap verify dir="$(get "$1" .snapshot.dir)" >"$work/verified"
}
give_back() { # ID: what undoes a freeze that failed
    local failed
    failed=$(get "$1" .snapshot.dir)
    wrenn-launch resume --undo <"$work/$1.json" | jq 'del(.error, .snapshot, .vm.base)' >"$work/$1.new"
    mv "$work/$1.new" "$work/$1.json"
    rm -rf "$failed"
}

# --- Looking: inside through the agent, outside through the kernel. ----------------------------------------------------
guest() { # ID SCRIPT: runs it in the guest, prints its output
    wrenn-guest exec - "cmd=set -e; $2" <"$work/$1.json" |
        jq -er '.exec | if .exit_code == 0 then .stdout else error("\(.status): \(.stderr)") end'
}
memory_sum() { guest "$1" 'md5sum </mem/random'; }
disk_sum()   { guest "$1" 'dd if=/random bs=1M iflag=direct status=none | md5sum'; } # past the guest's memory
remember()   { # of the first sandbox
    memory=$(memory_sum life)
    disk=$(disk_sum life)
    count=$(counting life)
}
free_kib()   { guest life 'grep MemFree /proc/meminfo | tr -dc 0-9'; }
counting()   { guest "$1" 'cat /mem/count'; }
same() { # WHAT IS SHOULD
    [[ $2 == "$3" ]] || { echo "lifecycle: $1 is $2, should be $3" >&2; return 1; }
}
counts_on() { # ID FROM: the process that counted there still does
    local now
    now=$(guest "$1" "grep -q /mem/counter /proc/\$(cat /mem/pid)/cmdline
        for try in \$(seq 100); do n=\$(cat /mem/count); [ \$n -le $2 ] || break; usleep 100000; done; echo \$n")
    ((now > $2)) || { echo "lifecycle: the count is $now, after $2" >&2; return 1; }
}
host_state() { # what sandboxes leave in a kernel
    find /run/netns /dev/mapper /sys/class/net -mindepth 1 2>/dev/null || true
    cat /sys/block/dm-*/dm/uuid /sys/block/loop*/loop/backing_file 2>/dev/null || true
    grep -F wrenn /proc/mounts || true
    grep -lsaF -f /dev/stdin /proc/[0-9]*/cmdline <<<"$work" || true
}

# --- Steps: one line each, with its time; a table of what the programs took at the end. --------------------------------
step() { # WHAT-IT-PROVES COMMAND…
    local start=${EPOCHREALTIME/./} took
    proving=$1; shift
    "$@" # not as a condition: the first thing in it that fails ends the script
    took=$((${EPOCHREALTIME/./} - start))
    printf '%4d.%02d s  %s\n' $((took / 1000000)) $((took / 10000 % 100)) "$proving"
}
cleanup() {
    local status=$? file
    trap '' INT TERM
    if ((status)); then
        echo "lifecycle: failed: ${proving:-}" >&2
        tail -n 20 "$WRENN_RUN"/*/*.log >&2 2>/dev/null || true
    fi
    for file in "$work"/*.json; do
        [[ ! -f $file ]] || destroy <"$file" >/dev/null || true
    done
    ! mountpoint -q "$work/full" || umount "$work/full" || true
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# =======================================================================================================================
before=$(host_state)
for file in kernel initrd minimal/rootfs.ext4; do
    [[ -f $image/$file ]] || { echo "lifecycle: $image/$file is not there: make image" >&2; exit 5; }
done
mkdir -p "$WRENN_ROOT"/{kernels,images/minimal}
cp "$image/kernel" "$WRENN_ROOT/kernels/vmlinux"
cp "$image/initrd" "$WRENN_ROOT/kernels/initrd"
cp --sparse=always "$image/minimal/rootfs.ext4" "$WRENN_ROOT/images/minimal/rootfs.ext4"
rootfs=$WRENN_ROOT/images/minimal/rootfs.ext4

boots() {
    document life "$rootfs"
    through life create
    vmm=$(get life .vm.vmm)
}
commands() {
    same "a command's output" "$(guest life 'echo $GREETING from $(id -un)')" 'hello from root'
    same "another user's" "$(wrenn-guest exec - user=user cmd='id -un' <"$work/life.json" | jq -r .exec.stdout)" user
    same "an exit status" "$(wrenn-guest exec - cmd='exit 7' <"$work/life.json" | jq .exec.exit_code)" 7
}
fill() {
    guest life 'mkdir -p /mem; mount -t tmpfs -o size=120m none /mem
        dd if=/dev/urandom of=/mem/random bs=1M count=32 status=none
        dd if=/dev/urandom of=/random bs=1M count=32 conv=fsync status=none
        echo "n=0; while :; do n=\$((n + 1)); echo \$n >/mem/new; mv /mem/new /mem/count; usleep 100000; done" >/mem/counter
        setsid sh /mem/counter >/dev/null 2>&1 </dev/null & echo $! >/mem/pid; sleep 1' >/dev/null
    remember
}
only_files() { same "what is left on the host" "$(host_state)" "$before"; }
exact() { # ID
    counts_on "$1" "$count"
    same "the memory of $1" "$(memory_sum "$1")" "$memory"
    same "the disk of $1" "$(disk_sum "$1")" "$disk"
}
change() {
    guest life 'dd if=/dev/urandom of=/mem/random bs=1M seek=4 count=4 conv=notrunc status=none
        dd if=/dev/zero of=/mem/random bs=1M seek=16 count=8 conv=notrunc status=none
        dd if=/dev/urandom of=/random bs=1M seek=8 count=4 conv=notrunc,fsync status=none' >/dev/null
    remember
}
small_diff() {
    local bytes
    bytes=$(($(stat -c '%b * %B' "$(get life '.snapshot | "\(.dir)/memfile.\(.build)"')")))
    ((bytes < 48 << 20)) || { echo "lifecycle: a diff of $bytes bytes" >&2; return 1; }
    same "the kind of this pause" "$(get life .snapshot.kind)" "$(plain && echo full || echo diff)"
}
zeros() { same "what was zeroed" "$(guest life "dd if=/mem/random bs=1M skip=16 count=8 status=none | tr -d '\0' | wc -c")" 0; }
complete() { # a VMM that reads its memory by itself takes nothing back before it has all of it
    while plain && readlink "/proc/$(get life .vm.pid)"/fd/* | grep -q userfaultfd; do sleep 0.2; done
}
inflate() {
    local free
    complete
    free=$(free_kib)
    wrenn-launch balloon - --mib 32 <"$work/life.json" >/dev/null
    until (($(free_kib) < free - 24 * 1024)); do :; done
    same "the memory of life" "$(memory_sum life)" "$memory"
}
deflate() {
    wrenn-launch balloon - --mib 0 <"$work/life.json" >/dev/null
    exact life
}
fails() { # a disk with room for a directory, the VMM's state and its memory, but not for the pack's header
    mkdir "$work/full"
    mount -t tmpfs -o "nr_inodes=$(plain && echo 5 || echo 4)" full "$work/full"
    edit life --arg dir "$work/full/gen" '.snapshot = {$dir, kind: "full"}'
    if through life freeze 2>"$work/refused"; then
        echo "lifecycle: this pause should have failed" >&2
        return 1
    fi
    same "what failed" "$(get life .error.tool)" wrenn-snap
    give_back life
    umount "$work/full"
    counts_on life "$count"
}
make_template() {
    edit life --arg out "$WRENN_ROOT/images/warm" --arg flat "$work/flat" \
        '.cow.out = $flat | .snapshot += {$out, rootfs: $flat}'
    through life template
    edit life 'del(.cow.out, .snapshot.out, .snapshot.rootfs)'
}
three() {
    local id jobs=()
    for id in clone-a clone-b clone-c; do
        document "$id" "$WRENN_ROOT/images/warm/rootfs.ext4"
        edit "$id" --arg dir "$WRENN_ROOT/images/warm" '.snapshot = {$dir}'
        through "$id" launch & jobs+=($!)
    done
    for id in "${jobs[@]}"; do wait "$id"; done
}
apart() {
    local id
    for id in clone-a clone-b clone-c; do
        exact "$id"
        guest "$id" "echo $id >/own; echo $id >/mem/own" >/dev/null
    done
    for id in clone-a clone-b clone-c; do
        same "what $id wrote" "$(guest "$id" 'cat /own /mem/own; hostname' | uniq)" "$id"
        same "the clock of $id" "$(($(date +%s) - $(guest "$id" 'date +%s') < 5))" 1
    done
    same "how many addresses there are" "$(jq -r .net.host_ip "$work"/clone-?.json | sort -u | wc -l)" 3
}
end() {
    local file
    for file in "$work"/*.json; do
        destroy <"$file" >"$work/destroyed"
        rm "$file"
    done
    same "the slots" "$(wrenn-net list | jq -c .slots)" '[]'
    same "the disks" "$(wrenn-cow list | jq -c '[.disks, .loops]')" '[[],[]]'
}

step 'create: a guest boots and its agent answers' boots
printf '%9s  (by %s)\n' '' "$(get life '.vm | "\(.vmm) \(.version)"')"
step 'exec: output, environment, user and exit status come through' commands
step '32 MiB of random bytes in memory, 32 on disk, and a process that counts' fill
step 'pause (full): memory, state and disk are in one directory that verifies' pause life full
step '  ... and nothing else is left on the host' only_files
step 'resume: the guest wakes, its memory comes page by page' through life resume
step '  ... the same process counts on, memory and disk are what they were' exact life
step 'memory is overwritten, memory is zeroed, the disk changes' change
step 'pause (diff, where the VMM has it)' pause life diff
step '  ... stores about what changed' small_diff
step 'resume' through life resume
step '  ... exact' exact life
step '  ... and what was zeroed is zero' zeros
step 'the balloon takes 32 MiB: memory is exact' inflate
step '  ... and gives them back: exact' deflate
step 'a pause that finds the disk full gives the guest back, counting' fails
step 'the next pause is a full one' pause life full
step 'a template of that moment' make_template
step 'resume' through life resume
step '  ... exact' exact life
step 'three sandboxes from the template at once' three
step '  ... of one moment, each with its own address, disk, memory and clock' apart

took=$(jq -rs '[.[] | .id as $id | .timings_ms | to_entries[] | select($id == "life")] | .[] | "\(.key) \(.value)"' "$work/life.json")
step 'destroy: all of them' end
step '  ... and the host is as it was' only_files

echo
echo 'What each program took the last time it worked on the first sandbox, milliseconds:'
printf '%s\n' "$took" | awk '{ printf "%10.1f  %s\n", $2, $1 }'
