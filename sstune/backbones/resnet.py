"""ResNet-18 from timm, with the ImageNet stem or the one customary for 32x32 images."""

from __future__ import annotations

from torch import nn

from sstune.backbones.registry import BACKBONES, Backbone, Shape
from sstune.schema import ConvNetConfig, RequestError, Variant


@BACKBONES.register("resnet18")
def resnet18(config: ConvNetConfig, shape: Shape, outputs: int) -> Backbone:
    """timm's resnet18; ``pretrained`` takes timm's default weights from its hub (or the hub's cache).

    Raises:
        RequestError: the weights are neither cached nor to be had.
    """
    import timm  # takes seconds, and the other backbones do without

    channels, notes = shape[0], []
    try:
        module = timm.create_model(
            "resnet18", pretrained=config.pretrained, in_chans=channels, num_classes=outputs
        )
    except Exception as error:
        if not config.pretrained:
            raise
        hub = getattr(timm.get_pretrained_cfg("resnet18"), "hf_hub_id", "resnet18")
        raise RequestError(
            f"backbone.pretrained: the weights of {hub} are neither in the hub's cache (HF_HOME) nor to be "
            f"had ({type(error).__name__}); run once with network, or use init_from=FILE"
        ) from error
    if config.variant is not Variant.imagenet:
        module.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(module.conv1.weight, mode="fan_out", nonlinearity="relu")
        module.maxpool = nn.Identity()
        if config.pretrained:
            notes.append("backbone.variant=cifar: the first convolution is new, all else is pre-trained")
    return Backbone(module, head="fc", stem="conv1", notes=tuple(notes))
