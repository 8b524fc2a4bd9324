#!/bin/sh
# For GitHub's runner: ACTIONS_RUNNER_HOOK_JOB_COMPLETED=/usr/local/libexec/rack/job-completed.sh
exec "$(dirname "$0")/tart-base.sh" completed
