"""The form of Django's tutorials, stored by its own handlers and FileSystemStorage; gunicorn serves it."""

import os

import django
from django import forms
from django.conf import settings
from django.core.files.storage import FileSystemStorage
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse
from django.urls import path

FILES = os.environ["BENCH_FILES"]

settings.configure(
    ALLOWED_HOSTS=["*"],
    FILE_UPLOAD_TEMP_DIR=os.environ["BENCH_TMP"],
    MEDIA_ROOT=FILES,
    ROOT_URLCONF=__name__,
    SECRET_KEY="bench",
)
django.setup()

storage = FileSystemStorage(location=FILES)


class UploadForm(forms.Form):
    title = forms.CharField(max_length=50)
    file = forms.FileField()


def upload(request):
    form = UploadForm(request.POST, request.FILES)
    if not form.is_valid():
        return JsonResponse(form.errors.get_json_data(), status=422)
    file = form.cleaned_data["file"]
    name = storage.save(file.name, file)
    return JsonResponse({"title": form.cleaned_data["title"], "name": name, "size": file.size}, status=201)


urlpatterns = [path("", upload)]
application = get_wsgi_application()
