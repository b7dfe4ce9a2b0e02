"""GroupNorm with another number of groups than diffusers' fixed 32."""

from torch import nn

from sonic.errors import InputError


def set_group_count(module: nn.Module, groups: int) -> None:
    """Set the number of groups of every GroupNorm in `module`.

    Raises:
        InputError: a layer's channels are not a multiple of `groups`.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.GroupNorm):
            if layer.num_channels % groups:
                raise InputError(
                    f"norm_num_groups {groups} does not divide the {layer.num_channels} channels of "
                    f"'{name}'; choose a divisor"
                )
            layer.num_groups = groups
