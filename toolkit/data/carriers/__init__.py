"""Pictures for requests that are text: drawn words, or a picture that says nothing, beside the request.

:func:`.made.with_carriers` writes them; :data:`.drawing.FORMS` are the forms.
"""
