"""What each operation can answer beyond what its parameters, its body and its scope tell."""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias, get_args

from msgspec import Struct

from domain.events.jobs import Format
from workers.mastering import content_type

AUDIO: Final = tuple(content_type(each) for each in get_args(Format))
ZIP: Final = "application/zip"
# Problems of what lies in the object store.
STORED: Final = (410,)
Schema: TypeAlias = dict[str, Any]


class Answers(Struct, frozen=True, kw_only=True):
    """`problems` are statuses of problem details. `also` are those of success beside the first: 202 and 200 with the
    same body, others with none. `media_types` are those of a body that is no JSON of the route's type, with `is_json`
    beside that. `events` are those of a stream, with the schemas of their data. What `is_file` honours ranges, what
    `is_versioned` answers If-None-Match, and what `is_unready` at first says so in its own body.
    """

    problems: tuple[int, ...] = ()
    also: tuple[int, ...] = ()
    media_types: tuple[str, ...] = ()
    is_json: bool = False
    is_file: bool = False
    is_versioned: bool = False
    is_unready: bool = False
    events: Mapping[str, str] = {}
    headers: tuple[str, ...] = ()
    example: Mapping[str, Any] | None = None


PLAIN: Final = Answers()
POSITION: Final = ("X-Event-Position",)
MADE: Final = ("Location", "X-Event-Position")
NAMED: Final = ("Content-Disposition",)


def _file(*media_types: str, problems: tuple[int, ...] = ()) -> Answers:
    return Answers(
        problems=(*STORED, *problems), media_types=media_types, is_file=True, is_versioned=True, headers=NAMED
    )


_ENDS: Final = ("completed", "failed", "cancelling", "cancelled")
JOB_EVENTS: Final = {
    **dict.fromkeys(("snapshot", "queued", "started", "sample", *_ENDS, "deleted"), "JobBody"),
    "progress": "JobProgress",
}
TRAINING_EVENTS: Final = {
    **dict.fromkeys(("snapshot", "queued", "started", "checkpoint", *_ENDS), "TrainingBody"),
    "progress": "TrainingProgress",
}
READ: Final = Answers(headers=POSITION)

ANSWERS: Final[Mapping[str, Answers]] = {
    "getIndex": Answers(problems=(503,), also=(302,)),
    "createPrompt": Answers(
        also=(202,), headers=MADE, example={"text": "slow blues, brushed drums", "attributes": {"mood": "calm"}}
    ),
    "submitGeneration": Answers(
        problems=(404, 409),
        headers=MADE,
        example={"prompt": "slow blues, brushed drums", "num_samples": 2, "duration": 8.0, "seed": 7},
    ),
    "getGeneration": READ,
    "cancelGeneration": Answers(problems=(409,), also=(202,), headers=MADE),
    "rerunJob": Answers(problems=(409,), headers=MADE, example={"same_seeds": True, "temperature": 1.2}),
    "getJob": READ,
    "deleteJob": Answers(problems=(409,), also=(202,), headers=POSITION),
    "followJob": Answers(also=(204,), events=JOB_EVENTS),
    "getJobsAudio": Answers(problems=(*STORED, 404, 409), media_types=(ZIP,), is_versioned=True, headers=NAMED),
    "getJobAudio": Answers(problems=(*STORED, 409), media_types=(ZIP,), is_versioned=True, headers=NAMED),
    "followStudio": Answers(
        events={"connected": "Nothing", "job": "JobBody", "progress": "JobProgress", "changed": "Changed"}
    ),
    "giveFeedback": Answers(problems=(404,), also=(202,), headers=MADE),
    "getFeedback": READ,
    "reviseFeedback": Answers(also=(202,), headers=MADE),
    "eraseFeedback": Answers(headers=POSITION),
    "getWaveform": Answers(problems=STORED),
    "getAudioStream": _file(*AUDIO),
    "uploadMelody": Answers(headers=("Location",)),
    "getMelody": Answers(problems=STORED),
    "eraseMelody": Answers(problems=STORED),
    "compareAudio": Answers(problems=(404,)),
    "registerAdapter": Answers(problems=(404, 409), headers=MADE),
    "getAdapter": READ,
    "changeAdapter": Answers(headers=POSITION),
    "getAdapterFile": _file("application/json", "application/octet-stream"),
    "activateModel": Answers(headers=POSITION),
    "createABTest": Answers(
        problems=(404, 409),
        headers=MADE,
        example={"name": "jazz against the base model", "prompts": ["slow blues", "fast jazz"], "pairs_per_prompt": 5},
    ),
    "getABTest": READ,
    "getNextTrial": Answers(problems=(*STORED, 409)),
    "getTrialAudio": _file("audio/wav"),
    "castVote": Answers(problems=(*STORED, 409), headers=POSITION),
    "closeABTest": Answers(headers=POSITION, example={}),
    "getABTestResults": Answers(media_types=("text/csv",), is_json=True, headers=(*POSITION, *NAMED)),
    "createDataset": Answers(
        problems=(409,),
        headers=MADE,
        example={"name": "what we liked", "type": "supervised", "filter_query": {"min_rating": 4}, "held_out": 0.1},
    ),
    "getDataset": READ,
    "listDatasetItems": Answers(problems=(*STORED, 409)),
    "getDatasetCard": Answers(media_types=("text/markdown",), headers=POSITION),
    "exportDataset": Answers(problems=(409,), headers=MADE, example={"format": "supervised"}),
    "getDatasetExport": _file(ZIP, problems=(409,)),
    "requestTraining": Answers(problems=(404, 409), headers=MADE),
    "getTraining": READ,
    "cancelTraining": Answers(problems=(409,), also=(202,), headers=MADE),
    "getTrainingSample": _file("audio/flac"),
    "followTraining": Answers(events=TRAINING_EVENTS),
    "getWebhookSecret": Answers(problems=STORED),
    "rotateWebhookSecret": Answers(problems=STORED, example={}),
    "replayWebhookDelivery": Answers(headers=MADE, example={}),
    "createKey": Answers(headers=POSITION, example={"owner": "ann", "scopes": ["read", "write"], "label": "laptop"}),
    "revokeKey": Answers(headers=POSITION),
    "isReady": Answers(is_unready=True),
    "getHealth": Answers(is_unready=True),
    "generateTrack": Answers(
        problems=(404, 409, 500), headers=MADE, example={"prompt": "slow blues, brushed drums", "duration": 10}
    ),
    "getTrack": Answers(problems=STORED, headers=POSITION),
    "getOutput": _file(*AUDIO),
    "generateAudio": Answers(problems=(404, 409), headers=MADE),
    "getCampaignAudio": READ,
    "deleteCampaignAudio": Answers(problems=(409,), headers=POSITION),
    "getCampaignAudioData": _file(*AUDIO, problems=(409,)),
}
