#!/bin/sh
# A mixed cluster: starts a Python worker, and becomes the command that follows. Both take tasks from the same queue.
#
#   mixed.sh PYTHON APP COMMAND…
#
# PYTHON has Celery, APP is the module of the Python worker's app. The Python worker ends with the process group.
set -eu
python=$1 app=$2
shift 2
"$python" -m celery -A "$app" worker -P prefork -c 1 -n "python-$$@mixed" -l INFO \
  --without-mingle --without-gossip --without-heartbeat &
exec "$@"
