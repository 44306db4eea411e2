"""OpenAI's messages as a chat of questions and answers, each question with its own pictures."""

from __future__ import annotations

from megatron_mmsr1.config import ProtocolConfig
from serving.chat import Chat, Question
from serving.gateway.errors import ApiError
from serving.gateway.pictures import Pictures
from serving.gateway.schema import AssistantMessage, ChatRequest, ImagePart, TextPart, UserMessage
from serving.settings import LimitsSection

# No tokenizer makes longer tokens of a text that means anything: more than this is too long without being tokenised.
CHARS_A_TOKEN = 64


async def read(request: ChatRequest, pictures: Pictures, limits: LimitsSection, protocol: ProtocolConfig) -> Chat:
    """Raises ApiError 400 for a conversation that is not one: it ends with a user's message, and each answer follows one."""
    _within(request, limits, protocol)
    system: list[str] = []
    questions: list[Question] = []
    for n, m in enumerate(request.messages):
        if isinstance(m, UserMessage):
            asked = await _question(m, n, pictures)
            if questions and questions[-1].answer is None:  # said in two messages
                last = questions[-1]
                last.text = "\n".join(filter(None, (last.text, asked.text)))
                last.images += asked.images
            else:
                questions.append(asked)
        elif isinstance(m, AssistantMessage):
            if not questions:
                raise _wrong(n, "an assistant's message follows a user's")
            last = questions[-1]
            last.answer = "\n".join(filter(None, (last.answer, _text(m.content))))
        else:
            system.append(_text(m.content))
    if not questions or questions[-1].answer is not None:
        raise _wrong(len(request.messages) - 1, "the last message must be a user's")
    return Chat(questions, "\n".join(filter(None, system)))


async def _question(m: UserMessage, n: int, pictures: Pictures) -> Question:
    asked = Question(_text(m.content))
    if not isinstance(m.content, str):
        for i, part in enumerate(m.content):
            if isinstance(part, ImagePart):
                asked.images.append(await pictures.load(part.image_url.url, f"messages[{n}].content[{i}].image_url.url"))
    if not asked.text.strip() and not asked.images:
        raise _wrong(n, "a user's message has a text or a picture")
    return asked


def _text(content: str | list[TextPart] | list[TextPart | ImagePart]) -> str:
    return content if isinstance(content, str) else "\n".join(p.text for p in content if isinstance(p, TextPart))


def _within(request: ChatRequest, limits: LimitsSection, protocol: ProtocolConfig) -> None:
    """Before any of it costs something."""
    if len(request.messages) > limits.messages:
        why = f"{len(request.messages)} messages; the limit is {limits.messages}"
        raise ApiError(400, why, param="messages", code="too_many_messages")
    parts = [p for m in request.messages if not isinstance(m.content, str) for p in m.content]
    images = sum(isinstance(p, ImagePart) for p in parts)
    if images > limits.images:
        raise ApiError(400, f"{images} pictures; the limit is {limits.images}", param="messages", code="too_many_images")
    turns = 2 * max(1, sum(isinstance(m, UserMessage) for m in request.messages))
    tokens = turns * max(protocol.max_prompt_tokens, protocol.max_turn_tokens)
    if sum(len(_text(m.content)) for m in request.messages) > CHARS_A_TOKEN * tokens:
        why = f"the conversation is longer than {tokens} tokens can say"
        raise ApiError(400, why, param="messages", code="context_length_exceeded")


def _wrong(n: int, why: str) -> ApiError:
    return ApiError(400, f"messages[{n}]: {why}", param=f"messages[{n}]", code="invalid_value")
