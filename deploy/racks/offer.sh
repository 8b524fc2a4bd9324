#!/bin/sh
# Offers the new image to one Mac, and returns when the Mac's base VM is of it. `parbake gate run` starts it on the
# operator's machine, for each host whose turn it is:
#
#   parbake gate run ghcr.io/org/runner:v2 --group ci --at-most 10% -- deploy/racks/offer.sh
#
# Settings, from the environment:
#   RACK_SSH          a program that is given host and command [default: ssh, which may ask for nothing, and with a
#                     terminal, so that the offer ends with it]
#   RACK_BASE_SCRIPT  where tart-base.sh lies on the Macs [default: /usr/local/libexec/rack/tart-base.sh]
set -eu
script=${RACK_BASE_SCRIPT:-/usr/local/libexec/rack/tart-base.sh}
if [ -n "${RACK_SSH:-}" ]; then
	exec "$RACK_SSH" "$PARBAKE_HOST" "$script" offer "$PARBAKE_IMAGE"
fi
exec ssh -tt -o BatchMode=yes "$PARBAKE_HOST" "$script" offer "$PARBAKE_IMAGE"
