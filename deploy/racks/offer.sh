#!/bin/sh
# Offers the new image to one Mac, and returns when the Mac's base VM is of it. `parbake gate run` starts it on the
# operator's machine, for each host whose turn it is:
#
#   parbake gate run ghcr.io/org/runner:v2 --group ci --at-most 10% -- deploy/racks/offer.sh
#
# Settings, from the environment:
#   RACK_SSH          a program that is given host and command [default: ssh]
#   RACK_BASE_SCRIPT  where tart-base.sh lies on the Macs [default: /usr/local/libexec/rack/tart-base.sh]
set -eu
exec "${RACK_SSH:-ssh}" "$PARBAKE_HOST" "${RACK_BASE_SCRIPT:-/usr/local/libexec/rack/tart-base.sh}" offer "$PARBAKE_IMAGE"
