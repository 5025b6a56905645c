#!/bin/bash
# Put a run aside that was begun with other results than there are now: what it has learnt from those is void. Waits until no
# process works in its folder.
#
#   bash recipes/pipeline/set_aside.sh FOLDER SOURCE ...
#
# A source is the run folder of a stage that has ended, whose result is its best checkpoint, or the folder of an exported codec.
set -eu
folder=$1
. recipes/ablation/lock.sh "$folder"
shift
results=
for source in "$@"; do
    if [ -d "$source/save" ]; then
        result=$(cat "$source/best_checkpoint.json")
    else
        result=$(cd "$source" && cksum *.json *.safetensors)
    fi
    results+=${results:+$'\n'}$result
done
if [ -e "$folder/sources.txt" ] && [ "$results" != "$(cat "$folder/sources.txt")" ]; then
    mv "$folder" "$folder.$(date +%Y%m%d-%H%M%S)"
fi
mkdir -p "$folder"
printf '%s\n' "$results" > "$folder/sources.txt"
