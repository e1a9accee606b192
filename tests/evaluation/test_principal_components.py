"""Principal components: against scikit-learn's."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from evaluation.principal_components import Projection, principal_components


def features(N: int = 200) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, 12, generator=generator) * torch.linspace(0.2, 3, 12) + 0.5


@pytest.mark.parametrize("whitening", [False, True])
@pytest.mark.parametrize("dimensions", [5, 12, 40])
def test_descriptors_are_scikit_learns_up_to_the_signs_of_axes(
    whitening: bool, dimensions: int
) -> None:
    h_NF, new_NF = features(), features(220)[200:]
    project = principal_components(h_NF, dimensions=dimensions, whitening=whitening)
    oracle = PCA(min(dimensions, 12), whiten=whitening, svd_solver="full")
    oracle.fit(F.normalize(h_NF, dim=1).double().numpy())
    expected_ND = oracle.transform(F.normalize(new_NF, dim=1).double().numpy())
    expected_ND /= np.linalg.norm(expected_ND, axis=1, keepdims=True)
    found_ND = project(new_NF).numpy()
    signs_D = np.sign((found_ND * expected_ND).sum(0))
    np.testing.assert_allclose(found_ND * signs_D, expected_ND, atol=2e-6)


def test_the_signs_do_not_depend_on_the_order_of_the_images() -> None:
    h_NF = features()
    one, other = (
        principal_components(rows_NF, dimensions=6, whitening=False)(h_NF)
        for rows_NF in (h_NF, h_NF.flip(0))
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_axes_without_variance_stay_out_of_a_whitened_descriptor() -> None:
    h_NF = features()
    h_NF[:, 3] = 0  # a unit that never fires
    found_ND = principal_components(h_NF, dimensions=12, whitening=True)(h_NF)
    assert found_ND.isfinite().all() and (found_ND[:, -1] == 0).all()
    variance_D = found_ND[:, :-1].var(0)
    assert variance_D.max() < 3 * variance_D.min()


def test_without_components_vectors_become_unit_ones() -> None:
    h_NF = features()
    torch.testing.assert_close(Projection()(h_NF), F.normalize(h_NF, dim=1))


def test_too_few_and_broken_images_are_refused() -> None:
    with pytest.raises(ValueError, match="12 training images have no 12 principal components"):
        principal_components(features(12), dimensions=40, whitening=False)
    with pytest.raises(ValueError, match="not finite"):
        principal_components(features().fill_(torch.nan), dimensions=4, whitening=False)
