"""The same reads as most people write them: FastAPI under Mangum, SQLAlchemy's ORM, models for the answers.

It sees the same rows under the same policies, says how fresh they are and knows ETags. It takes the gateway's word for the
token, as is usual, so it verifies nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import AsyncIterator
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from mangum import Mangum
from pydantic import BaseModel, ConfigDict
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

engine = create_async_engine(
    os.environ["TIDEGATE_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://"), pool_size=1, max_overflow=0
)
session_of = async_sessionmaker(engine)
app = FastAPI()


class Base(DeclarativeBase):
    pass


class ParcelRow(Base):
    __tablename__ = "parcels"
    number: Mapped[str] = mapped_column(primary_key=True)
    status: Mapped[str]
    origin_office: Mapped[str]
    current_office: Mapped[str | None]
    destination_office: Mapped[str]
    sender: Mapped[str]
    recipient: Mapped[str]
    partner_shop: Mapped[str | None]
    shipping_cost: Mapped[Decimal]
    weight_kg: Mapped[Decimal]
    express: Mapped[bool]
    booked_at: Mapped[datetime]
    promised_on: Mapped[date | None]
    changed_at: Mapped[datetime]


class Parcel(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    number: str
    status: str
    origin_office: str
    current_office: str | None
    destination_office: str
    sender: str
    recipient: str
    partner_shop: str | None
    shipping_cost: Decimal
    weight_kg: Decimal
    express: bool
    booked_at: datetime
    promised_on: date | None
    changed_at: datetime


class Page(BaseModel):
    items: list[Parcel]
    next_cursor: str | None


async def claimed(request: Request) -> AsyncIterator[AsyncSession]:
    """A session in a transaction that bears the caller's claims."""
    claims = request.scope["aws.event"]["requestContext"]["authorizer"]["jwt"]["claims"]
    viewers = {"everyone": ["*"], "customer": [claims["username"].removeprefix("customer-")]}
    async with session_of() as session, session.begin():
        await session.execute(
            text("SELECT set_config('tidegate.viewers', :viewers, true)"), {"viewers": json.dumps(viewers)}
        )
        yield session


Session = Annotated[AsyncSession, Depends(claimed)]


async def fresh(session: AsyncSession) -> str:
    found = await session.execute(text("SELECT min(as_of) FROM tidegate.data_as_of(ARRAY['parcels'])"))
    return str(found.scalar_one().isoformat())


def tagged(model: BaseModel, as_of: str, request: Request) -> Response:
    body = model.model_dump_json().encode()
    headers = {
        "ETag": f'"{hashlib.sha256(body).hexdigest()}"',
        "Data-As-Of": as_of,
        "Cache-Control": "private, no-cache",
    }
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


@app.get("/v1/parcels", response_model=Page)
async def parcels(request: Request, session: Session, limit: int = 50) -> Any:
    as_of = await fresh(session)
    rows = (await session.scalars(select(ParcelRow).order_by(ParcelRow.number).limit(limit + 1))).all()
    cursor = rows[limit - 1].number if len(rows) > limit else None
    return tagged(Page(items=[Parcel.model_validate(row) for row in rows[:limit]], next_cursor=cursor), as_of, request)


@app.get("/v1/parcels/{number}", response_model=Parcel)
async def parcel(number: str, request: Request, session: Session) -> Any:
    as_of = await fresh(session)
    row = await session.get(ParcelRow, number)
    if row is None:
        raise HTTPException(404)
    return tagged(Parcel.model_validate(row), as_of, request)


handler = Mangum(app, lifespan="off")
