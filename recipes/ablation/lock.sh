# Wait until no other process works in a run's folder, one that has survived its sweep, and keep others out as long as this process
# or a child of it lives. The lock lies beside the folder, which recipes/pipeline/set_aside.sh may move. To be sourced:
#
#   . recipes/ablation/lock.sh FOLDER
mkdir -p "$1"
lock=$(cd "$1" && pwd -P)
exec 9> "${lock%/*}/.${lock##*/}.lock"
flock 9
