#!/bin/sh
# Makes the .ulaw files beside this script from prompts.tsv: headerless 8 kHz µ-law, mono, trimmed, peak at -6 dB.
# Needs flite (with the voices rms and slt) and sox. Run by hand when prompts.tsv changes; the results are committed.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
rm -f ./*.ulaw
while IFS="$(printf '\t')" read -r name role text; do
    case $role in
        caller) voice=slt ;;
        agent) voice=rms ;;
        *) echo "prompts.tsv: $name has the unknown role $role" >&2; exit 1 ;;
    esac
    flite -voice "$voice" -t "$text" -o "$work/speech.wav" </dev/null
    # -D: no dither, so that the same input gives the same bytes.
    sox -D "$work/speech.wav" -t ul -r 8000 -c 1 "$name.ulaw" \
        rate 8000 norm -6 silence 1 0.01 1% reverse silence 1 0.01 1% reverse
done <prompts.tsv
