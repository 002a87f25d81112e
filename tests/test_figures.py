import numpy as np
import pytest
from matplotlib.image import imread

from fastperm import figures


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def check_picture(path, *, width=1080):
    """Check that a file is a picture, of the expected width, with something drawn on it in colour."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    pixels = imread(path)[..., :3]
    assert abs(pixels.shape[1] - width) <= 1
    assert 400 < pixels.shape[0] < 1500
    assert (pixels == 1).all(axis=2).mean() > 0.5, "the background is white"
    coloured = np.ptp(pixels, axis=2) > 0.2
    assert coloured.mean() > 2e-4, "there are curves or points"
    # A legend or a label that does not fit is cut off at the edge.
    for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]):
        assert (edge == 1).all()


def history(steps, every):
    loss = 5 * np.exp(-np.arange(steps) / 20) + 0.5
    validation = np.where(np.arange(1, steps + 1) % every == 0, loss, np.nan) if every else np.full(steps, np.nan)
    return {"step": list(range(1, steps + 1)), "loss": loss.tolist(), "validation_loss": validation.tolist()}


@pytest.mark.parametrize(("steps", "every"), [(200, 10), (200, 1), (50, 0), (1, 1)])
@pytest.mark.parametrize(("prior_error", "optimum_error"), [(np.pi**2 / 6, 0.3), (0.0, 1e-16), (None, None)])
def test_learning_curve(tmp_path, steps, every, prior_error, optimum_error):
    path = tmp_path / "curve.png"
    figures.learning_curve(path, history(steps, every), prior_error=prior_error, optimum_error=optimum_error)
    if steps > 1:
        check_picture(path)


@pytest.mark.parametrize("K", [1, 4, 40])
def test_errors(tmp_path, K):
    k = np.arange(K) + 1
    names = ("network", "optimum", "gaussian-process", "least-squares", "lomb-scargle", "periodogram", "prior-mean")
    errors = {name: 0.01 * (i + 1) * k for i, name in enumerate(names)}
    path = tmp_path / "errors.png"
    figures.errors(path, k, errors)
    check_picture(path)


@pytest.mark.parametrize(("K", "S"), [(1, 30), (2, 30), (3, 1), (4, 300), (5, 2), (40, 30)])
def test_spectra(tmp_path, generator, K, S):
    truths = np.log(generator.standard_exponential((S, K)))
    estimates = truths + 0.3 * generator.standard_normal((S, K))
    errors = ((estimates - truths) ** 2).mean(axis=0)
    path = tmp_path / "spectra.png"
    figures.spectra(path, np.arange(K) + 3, truths, estimates, errors, np.full(K, 1.645))
    check_picture(path)


def test_spectra_of_equal_numbers(tmp_path):
    figures.spectra(tmp_path / "s.png", [1], np.zeros((3, 1)), np.zeros((3, 1)), [0.0], [0.0])
    assert (tmp_path / "s.png").exists()


def test_samples(tmp_path, generator):
    grid = np.linspace(0, 2 * np.pi, 300)
    functions = []
    for k in (4, 32, 256):
        x = generator.uniform(0, 2 * np.pi, 100)
        functions.append((k, grid, np.cos(k * grid), x, np.cos(k * x)))
    figures.samples(tmp_path / "samples.png", functions)
    check_picture(tmp_path / "samples.png")


@pytest.mark.parametrize("n", [1, 500])
@pytest.mark.parametrize("log_powers", [[-1.0], [0.0, -3.0, np.nan, -9.0]])
def test_spectrum(tmp_path, generator, n, log_powers):
    x = generator.uniform(0, 2 * np.pi, n)
    k = np.arange(1, len(log_powers) + 1)
    path = tmp_path / "spectrum.png"
    figures.spectrum(path, x, np.cos(x), k, np.array(log_powers), 1.0 / k**2)
    check_picture(path)


def test_a_picture_ignores_the_users_style_and_leaves_it_alone(tmp_path, generator):
    import matplotlib as mpl

    with mpl.rc_context({"axes.facecolor": "black", "figure.facecolor": "black", "savefig.dpi": 30}):
        figures.learning_curve(tmp_path / "curve.png", history(50, 5))
        assert mpl.rcParams["axes.facecolor"] == "black"
    check_picture(tmp_path / "curve.png")


def test_pictures_need_no_display_and_no_pyplot(tmp_path):
    import subprocess
    import sys

    script = (
        "import sys; from fastperm import figures\n"
        "figures.spectrum(sys.argv[1], [1.0], [2.0], [1], [0.0], [1.0])\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.png")], check=True)
    check_picture(tmp_path / "a.png")
