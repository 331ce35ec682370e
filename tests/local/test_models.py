from domain.models import KNOWN, NOISE
from tests.local.conftest import Running


def test_scenario_list_available_models(studio: Running) -> None:
    models = studio.http.get("/models").json()["items"]
    assert sorted(model["id"] for model in models) == sorted(model.id for model in KNOWN)
    assert [model["id"] for model in models if model["is_active"]] == [models[0]["id"]] == [NOISE.id]
    for model in models:
        assert 0 < model["max_duration"] <= model["max_extended_duration"]
        assert model["sample_rate"] in {16000, 32000}
        assert model["vram_gb"] > 0
        assert model["license"]


def test_scenario_get_model_configuration(studio: Running) -> None:
    """The limits that requests are held to are those the registry shows."""
    (active,) = [model for model in studio.http.get("/models").json()["items"] if model["is_active"]]
    over = {"prompt": "x", "duration": active["max_extended_duration"] + 0.5}
    assert f"to {active['max_extended_duration']:g} s" in studio.http.post("/generate", json=over).json()["detail"]


def test_a_model_of_noise_says_that_it_is_one(studio: Running) -> None:
    assert "noise" in studio.http.get("/").json()["notice"]
    assert "noise" in studio.http.get("/models").json()["items"][0]["notice"]


def test_a_model_that_is_not_loaded_is_refused_with_the_way_out(studio: Running) -> None:
    answer = studio.http.post("/generate", json={"prompt": "x", "model_id": "facebook/musicgen-small"})
    assert answer.status_code == 400
    assert "TEXT2SONG_MODEL=facebook/musicgen-small" in answer.json()["detail"]
