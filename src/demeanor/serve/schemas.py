"""What requests may hold. Fields of OpenAI's and Ollama's that are not done here are refused, unless they say what is done anyway."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MOST_TOKENS = 32_768
Text = Annotated[str, Field(max_length=1_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e6, le=1e6)]
Controls = Annotated[str, Field(max_length=2000)] | Annotated[dict[str, Finite], Field(max_length=16)]
Stops = (
    Annotated[str, Field(min_length=1, max_length=200)]
    | Annotated[list[Annotated[str, Field(min_length=1, max_length=200)]], Field(max_length=4)]
)


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(Strict):
    type: Literal["text"]
    text: Text


class Message(Strict):
    """One message; developer is another word for system."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(max_length=64)]
    name: Annotated[str, Field(max_length=200)] | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Strict):
    include_usage: bool = False


class Steered(Strict):
    """What this project adds to every request that generates."""

    controls: Controls = Field(default="", description='controls in force: {"NAME": DOSE} or "0.5 NAME + 0.3 OTHER @when:GATED"')
    receipt: bool = Field(default=False, description="whether the answer says what was really changed")
    redo: bool = Field(
        default=False, description="whether the controls are in force only where the reply without them shows the behaviour (refuses)"
    )


class Generates(Steered):
    """What chat and text completions share."""

    model: Annotated[str, Field(max_length=500)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    n: Annotated[int, Field(ge=1, le=8)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Stops | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0
    logit_bias: Annotated[dict[str, float], Field(max_length=0)] | None = None
    user: Annotated[str, Field(max_length=500)] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def usage_in_stream(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class TextFormat(Strict):
    type: Literal["text"] = "text"


class ChatRequest(Generates):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: TextFormat | None = None
    store: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    service_tier: Literal["auto", "default"] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None

    @model_validator(mode="after")
    def _top_of_what(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def most(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Generates):
    """POST /v1/completions: the prompt is plain text, which no chat template touches."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=16)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: Literal[False] | None = None
    best_of: Literal[1] | None = None
    suffix: None = None

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class ReduceRequest(Strict):
    """POST /reduce_refusals: the reply to a text with the refusal control, at a strength and of a rank."""

    input_text: Annotated[str, Field(min_length=1, max_length=100_000)]
    scaling_factor: Annotated[float, Field(ge=-100, le=100)] = Field(
        default=1.0, description="strength of the refusal control; 1 removes refusal whole"
    )
    num_iterations: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="rank: how many directions of the refusal control are used"
    )


class DoseRequest(Strict):
    """PATCH /v1/controls/NAME."""

    dose: Annotated[float, Field(ge=-100, le=100)]


class ProjectionsRequest(Strict):
    """POST /v1/controls/NAME/projections: a conversation and what was said to it."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    reply: Text = ""
    controls: Controls = Field(default="", description="controls in force while it is read")


class OllamaOptions(BaseModel):
    """Options of Ollama's that are done; it sends others, which speak of its own engine."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    seed: int | None = None
    num_predict: Annotated[int, Field(ge=-2, le=MOST_TOKENS)] | None = None
    stop: Stops | None = None


class OllamaMessage(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: Text = ""


class OllamaRequest(Steered):
    """What /api/chat and /api/generate share."""

    model_config = ConfigDict(extra="ignore")  # keep_alive, think and more, which front ends always send
    model: Annotated[str, Field(max_length=500)]
    stream: bool = True
    options: OllamaOptions = OllamaOptions()


class OllamaChat(OllamaRequest):
    messages: Annotated[list[OllamaMessage], Field(max_length=1000)] = []


class OllamaGenerate(OllamaRequest):
    prompt: Text = ""
    system: Text | None = None
    raw: bool = False
