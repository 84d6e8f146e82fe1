#!/bin/sh
# Fills fuzz/corpus with the small files of fixtures/, whole and in parts.
set -eu
cd "$(dirname "$0")"
mkdir -p corpus/checkpoint corpus/pickle corpus/safetensors_header
for file in ../fixtures/torch/*.pt ../fixtures/torch/*.safetensors ../fixtures/torch/*.json; do
    [ -f "$file" ] && [ "$(wc -c < "$file")" -le 65536 ] || continue
    name=$(basename "$file")
    cp "$file" "corpus/checkpoint/$name"
    case $name in
    # The pickle of a zip; an old file is a row of pickles itself.
    zip_*) unzip -p "$file" '*/data.pkl' > "corpus/pickle/$name" 2> /dev/null || rm -f "corpus/pickle/$name" ;;
    legacy_*) tail -c +14 "$file" > "corpus/pickle/$name" ;;
    # Two bytes for the length of the data in front, as the target wants it.
    *.safetensors) { printf '\000\001'; tail -c +9 "$file" | head -c 4096; } > "corpus/safetensors_header/$name" ;;
    esac
done
