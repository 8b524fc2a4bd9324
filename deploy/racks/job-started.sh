#!/bin/sh
# For GitHub's runner: ACTIONS_RUNNER_HOOK_JOB_STARTED=/usr/local/libexec/rack/job-started.sh
exec "$(dirname "$0")/tart-base.sh" started
