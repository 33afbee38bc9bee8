"""A page for an artifact, and what eager says of pictures, in a process that has torchvision (see `torchvision_apart`).

Arguments: the checkpoint, its artifact, the page's folder, a `node_modules`, and as JSON what is said and shown in each
turn. Prints eager's replies.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from torchvision_apart import declare_operators


def replies(checkpoint_folder: str, window: int, turns: list[tuple[str, list[str]]]) -> list[str]:
    from lfm2_export.chat.conversation import Conversation
    from lfm2_export.checkpoint.tokenizer import ChatTokenizer
    from lfm2_export.images.opening import open_image
    from lfm2_export.images.viewing import Viewer
    from lfm2_export.model.load import load_decoder, load_vision_encoder, open_checkpoint
    from lfm2_export.runtimes.eager import EagerSession

    checkpoint = open_checkpoint(checkpoint_folder)
    tokenizer = ChatTokenizer.load(checkpoint.folder, checkpoint.config)
    assert checkpoint.vision is not None
    assert tokenizer is not None
    session = EagerSession(load_decoder(checkpoint), window, load_vision_encoder(checkpoint))
    viewer = Viewer(checkpoint.folder, checkpoint.vision, session)
    conversation, said = Conversation(session, tokenizer, image_token=viewer.processor.token), []
    for text, files in turns:
        conversation.pictures += [viewer.look(open_image(Path(file)), file) for file in files]
        said.append("".join(conversation.reply(text, 256)))
    return said


if __name__ == "__main__":
    from lfm2_export.artifact.folder import open_artifact
    from lfm2_export.bundle.pack import bundle

    declare_operators()
    checkpoint, artifact, page, node_modules, turns = sys.argv[1:]
    opened = open_artifact(Path(artifact))
    bundle(opened, "web", Path(page), node_modules=Path(node_modules))
    print(json.dumps(replies(checkpoint, opened.manifest.window, json.loads(turns))))
