"""Asks one question with the OpenAI SDK's chat completions call and prints the answer text alone.

The client key comes from POOLGATE_KEY. Retries are off unless asked for, so that a failure which the gateway should
have hidden ends the script. A stream without a finish reason counts as a failure: the SDK itself
would pass the shorter answer off as complete.
"""

import argparse
import os
import sys

from openai import OpenAI


def streamed(client, model, messages):
    finish_reason = None
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
        for choice in chunk.choices:
            yield choice.delta.content or ""
            finish_reason = choice.finish_reason or finish_reason
    if finish_reason != "stop":
        sys.exit(f"the stream ended with finish reason {finish_reason}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("base_url")
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("--stream", action="store_true")
    parser.add_argument("--retries", type=int, default=0)
    arguments = parser.parse_args()
    client = OpenAI(
        base_url=arguments.base_url, api_key=os.environ["POOLGATE_KEY"], max_retries=arguments.retries, timeout=45
    )
    messages = [{"role": "user", "content": arguments.prompt}]
    if arguments.stream:
        print("".join(streamed(client, arguments.model, messages)))
    else:
        answer = client.chat.completions.create(model=arguments.model, messages=messages)
        print(answer.choices[0].message.content)


main()
