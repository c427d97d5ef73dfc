"""CachedSession and OpenAIConversationsSession side by side, under the SDK's Runner."""
