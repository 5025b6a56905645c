#!/bin/bash
# Put a run aside that was begun with other results than there are now: what it has learnt from those is void.
#
#   bash recipes/pipeline/set_aside.sh FOLDER SOURCE ...
#
# A source is the run folder of a stage, whose result is its checkpoint, or the folder of an exported codec.
set -eu
folder=$1
shift
results=$(for source in "$@"; do
    if [ -d "$source/save" ]; then (cd "$source/save" && ls); else (cd "$source" && cksum *.json *.safetensors); fi
done)
if [ -e "$folder/sources.txt" ] && [ "$results" != "$(cat "$folder/sources.txt")" ]; then
    mv "$folder" "$folder.$(date +%Y%m%d-%H%M%S)"
fi
mkdir -p "$folder"
printf '%s\n' "$results" > "$folder/sources.txt"
