"""Which published weights of Inception there are, and those that a measurement asks for."""

from __future__ import annotations

from imgtool.evaluation.fid.options import Listener, Options
from imgtool.published import Flags, Published, Weights, find_weights

VARIABLE = "IMGTOOL_FID_WEIGHTS"
FLAGS = Flags(file="--weights", unverified="--allow-unverified-weights")

# The first is the Inception of 2015 that every published FID uses, as pytorch-fid converted it;
# torch-fidelity publishes the same bytes under the second name. The other is torchvision's own.
PUBLISHED = {
    "inception-fid": Published(
        of="inception-fid",
        url="https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
        "pt_inception-2015-12-05-6726825d.pth",
        names=(
            "pt_inception-2015-12-05-6726825d.pth",
            "weights-inception-2015-12-05-6726825d.pth",
        ),
        sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        num_bytes=95_628_359,
        variable=VARIABLE,
    ),
    "inception-imagenet": Published(
        of="inception-imagenet",
        url="https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth",
        names=("inception_v3_google-0cc3c7bd.pth",),
        sha256="0cc3c7bd75056d25e46cba549dc184522069b81e9787eff6df84f397bd52a5ef",
        num_bytes=108_949_747,
        variable=VARIABLE,
    ),
}


def weights_for(options: Options, listener: Listener) -> Weights:
    """The weights of a feature set; who watches hears what they are worth.

    Raises:
        DataError: as `find_weights`.
    """
    found = find_weights(
        PUBLISHED[options.features],
        options.weights,
        download=options.download,
        allow_unverified=options.allow_unverified,
        flags=FLAGS,
        tell=lambda done, total: listener.progress("downloading", "bytes", done, total),
        note=lambda text: listener.note(f"warning: {text}"),
    )
    if not found.verified:
        kind = "unverified" if found.path else "random"
        judge = "" if found.path else " Features of chance are no judge of images."
        listener.note(f"warning: {kind} weights: these numbers compare with nobody else's.{judge}")
    return found
