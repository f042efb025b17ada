# What Flower should know on the server's machine; sourced by the other scripts.
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1  # an app is run, nothing is installed for it
export FLWR_HOME="${FLWR_HOME:-$PWD/flower}"
umask 077                                              # all files are for this user alone
mkdir -p "$FLWR_HOME"
chmod 700 "$FLWR_HOME"
