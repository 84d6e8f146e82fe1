#!/usr/bin/env bash
# Times vlmerge on base-size checkpoints beside copying the same files, in one run.
#
#   benches/vlmerge.sh [FOLDER] [RUNS]
#
# Needs about 12 GB in FOLDER (default: a temporary folder, deleted at the end), GNU time
# (apt-get install -y time) and a release build, which it makes. Every figure is the median of RUNS
# (default 5) runs on a warm page cache; the baseline `cp` runs right before each command, so that a
# machine whose speed drifts treats both alike.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-}
runs=${2:-5}
if [ -z "$folder" ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi

cargo build --release --quiet -p merge-cli -p fixtures
vlmerge=$PWD/target/release/vlmerge
fixtures=$PWD/target/release/fixtures
ms=$folder/ms.ckpt seed=$folder/seed.ckpt
[ -f "$ms" ] || "$fixtures" checkpoint --size base --variant all_moe -o "$ms" >&2
grams=$folder/grams.pth
[ -f "$seed" ] || "$fixtures" checkpoint --size base --variant ufo -o "$seed" >&2
[ -f "$grams" ] || "$fixtures" grams --size base -o "$grams" >&2

# Runs a command and prints "seconds peak_kB".
timed() {
    local record
    record=$(mktemp)
    /usr/bin/time -f '%e %M' -o "$record" "$@" >/dev/null 2>&1 || true
    tail -n 1 "$record"
    rm -f "$record"
}

median() { sort -g | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }

# row NAME "FILES COPIED" COMMAND...
row() {
    local name=$1 copied=$2 seconds=() peaks=() copies=() ratios=() s p c
    shift 2
    # shellcheck disable=SC2086
    cat $copied >/dev/null
    for _ in $(seq "$runs"); do
        # shellcheck disable=SC2086
        read -r c _ < <(timed cp $copied "$folder/copies/")
        read -r s p < <(timed "$@")
        seconds+=("$s") peaks+=("$p") copies+=("$c")
        ratios+=("$(awk "BEGIN { print $s / ($c > 0 ? $c : 0.01) }")")
    done
    printf '%-34s %8.2f s %8.0f MB %8.2f s %7.2f\n' "$name" \
        "$(printf '%s\n' "${seconds[@]}" | median)" \
        "$(printf '%s\n' "${peaks[@]}" | median | awk '{ print $1 / 1000 }')" \
        "$(printf '%s\n' "${copies[@]}" | median)" \
        "$(printf '%s\n' "${ratios[@]}" | median)"
}

mkdir -p "$folder/copies"
printf '%-34s %10s %11s %10s %7s\n' command time 'peak RSS' cp ratio
row inspect "$ms" "$vlmerge" inspect "$ms"
row 'interpolate --ratio 0.5' "$ms" "$vlmerge" interpolate "$ms" --ratio 0.5 -o "$folder/merged.safetensors" --force
row 'interpolate, to .ckpt' "$ms" "$vlmerge" interpolate "$ms" --ratio 0.5 -o "$folder/merged.ckpt" --force
row 'arithmetic --lambda 0.75' "$ms $seed" "$vlmerge" arithmetic "$ms" --base "$seed" --lambda 0.75 -o "$folder/merged.safetensors" --force
row 'convert to safetensors' "$ms" "$vlmerge" convert "$ms" -o "$folder/ms.safetensors" --force
rm -f "$folder/merged.ckpt"
row 'distance' "$ms" "$vlmerge" distance "$ms"
row 'distance --base' "$ms $seed" "$vlmerge" distance "$ms" --base "$seed"
row 'ties --experts' "$ms $seed" "$vlmerge" ties "$seed" "$ms" --experts -o "$folder/merged.safetensors" --force
row 'regmean --task irtr' "$ms $grams" "$vlmerge" regmean "$ms" --grams "$grams" --task irtr -o "$folder/merged.safetensors" --force
row 'diff' "$ms" "$vlmerge" diff "$ms" "$folder/ms.safetensors"
rm -rf "$folder/copies"
